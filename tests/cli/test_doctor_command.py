"""`zephyrctl doctor` says what is there and what is not, and never a key."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import typer

from zephyrctl.cli import doctor
from zephyrctl.cli.options import Session
from zephyrctl.errors import UsageError
from zephyrctl.training import hardware
from zephyrctl.training.hardware import Gpu, Hardware

Doctor = Callable[..., tuple[int, str]]
CPU = Hardware((), 8 * 1024**3, 4, frozenset(), True)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command alone; its exit code and stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "this_machine", lambda: CPU)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(doctor.doctor_cli)

    def run(*args: str) -> tuple[int, str]:
        capsys.readouterr()
        code = app(list(args), standalone_mode=False, obj=Session())
        return int(code or 0), capsys.readouterr().out

    return run


def findings(out: str) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in json.loads(out)["findings"]}


def test_a_sound_machine(call: Doctor, tmp_path: Path) -> None:
    code, out = call("--json")
    found = findings(out)
    assert code == 0
    assert found["core packages"]["state"] == "ok"
    assert found["  torch"]["value"] == metadata.version("torch")
    assert found["GPUs"]["value"].startswith("none")
    assert found["store"]["value"] == "artifacts (not made yet)"
    assert not list(tmp_path.iterdir()), "looking makes nothing"
    assert "python" in call()[1]


def test_keys_are_named_and_never_shown(
    call: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf-very-secret")
    (tmp_path / "zephyrctl.yaml").write_text(
        "endpoints:\n  lab:\n    base_url: http://lab:8000/v1\n    key_env: LAB_KEY\n", encoding="utf-8"
    )
    out = call("--json")[1]
    assert "very-secret" not in out
    found = findings(out)
    assert (found["OPENAI_API_KEY"]["value"], found["ANTHROPIC_API_KEY"]["value"]) == ("set", "not set")
    assert found["LAB_KEY"]["value"] == "not set"


def test_a_missing_extra_is_a_fault_only_where_it_is_needed(
    call: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "deepspeed":
            raise metadata.PackageNotFoundError(name)
        return "4.0.1" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, out = call("--json")
    found = findings(out)
    assert code == 0
    assert found["deepspeed"]["state"] == "absent"
    assert "deepspeed is missing" in found["deepspeed"]["value"]
    assert "transformers 4.0.1 is older than 5.16.1" in found["train"]["value"]
    assert found["deepspeed"]["fix"] == "pip install 'zephyrctl[deepspeed]'"
    code, out = call("--need", "deepspeed", "--json")
    assert code == 3
    assert findings(out)["deepspeed"]["state"] == "fault"


def test_an_unknown_extra_is_a_usage_error(call: Doctor) -> None:
    with pytest.raises(UsageError, match="no extra 'deepsped'") as raised:
        call("--need", "deepsped")
    assert (raised.value.hint or "").startswith("there are: d"), "the core is no extra, and has no name"
    with pytest.raises(UsageError, match="no extra ''"):
        call("--need", "")


def test_a_store_that_cannot_be_written_is_a_fault(call: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, out = call("--store", str(tmp_path / "file" / "store"), "--json")
    assert code == 3
    assert findings(out)["store"]["state"] == "fault"


def test_gpus_come_with_their_peak_and_flash_attention(call: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu("NVIDIA H200", 150 * 10**9),)
    monkeypatch.setattr(hardware, "this_machine", lambda: Hardware(gpus, None, 16, frozenset()))
    found = findings(call("--json")[1])
    assert found["GPUs"]["value"] == "1 x NVIDIA H200 (140 GiB)"
    assert found["peak in bfloat16"]["value"] == "989 TFLOP/s"
    assert found["FlashAttention"]["state"] == "absent"
    assert "flash-attn" in found["FlashAttention"]["fix"]
