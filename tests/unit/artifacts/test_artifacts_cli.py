from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import tag
from zephyrctl.cli.app import run

if TYPE_CHECKING:
    from conftest import Make

Shell = Callable[..., tuple[int, str, str]]
FILES = {"config.json": "{}", "model.safetensors": "weights"}


@pytest.fixture
def shell(store: Store, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs `zephyrctl ARGS --store STORE` in this process: exit code, stdout, stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*args, "--store", str(store.root)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_an_empty_store_lists_nothing_and_is_not_made(shell: Shell, store: Store) -> None:
    code, out, err = shell("artifacts", "ls")
    assert (code, out) == (0, "")
    assert "nothing" in err
    assert not store.root.exists()
    assert json.loads(shell("artifacts", "ls", "--json")[1])["artifacts"] == []


def test_ls_shows_only_the_settings_that_differ(
    shell: Shell, make: Make, make_step: Callable[..., object]
) -> None:
    make(knob=1)
    make(knob=2, rows=5)
    make("sft-data", "sft")
    code, out, _ = shell("artifacts", "ls")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["prefs@v2", "prefs@v1", "sft-data@v1"]
    assert "knob 2" in lines[2]
    assert "seed" not in out
    assert "settings" not in shell("artifacts", "ls", "sft-data")[1]
    found = json.loads(shell("artifacts", "ls", "--json")[1])["artifacts"]
    assert found[0]["knobs"] == {"knob": 2}
    assert found[0]["rows"] == 7
    assert [
        e["ref"] for e in json.loads(shell("artifacts", "ls", "--json", "--kind", "sft")[1])["artifacts"]
    ] == ["sft-data@v1"]
    code, out, err = shell("artifacts", "ls", "pref")
    assert (code, out) == (4, "")
    assert "did you mean prefs" in err


def test_side_outputs_are_listed_with_all_or_by_name(shell: Shell, make_step: Callable[..., object]) -> None:
    with make_step("dpo-e3", "model").open() as staging:  # type: ignore[attr-defined]
        with staging.side("dpo-e3.epoch1", "model") as side:
            side.write_text("config.json", "{}")
        staging.write_text("config.json", "{}")
        staging.headline["accuracy"] = 0.71828
        staging.teachers.append({"provider": "openai", "model": "gpt-4", "calls": 3})
        staging.commit()
    _, out, _ = shell("artifacts", "ls")
    assert "epoch1" not in out
    assert "accuracy 0.7183" in out
    assert "gpt-4" in out
    assert "dpo-e3.epoch1@v1" in shell("artifacts", "ls", "--all")[1]
    assert "(side)" in shell("artifacts", "ls", "dpo-e3.epoch1")[1]


def test_a_damaged_version_is_listed_as_damaged(shell: Shell, make: Make) -> None:
    path = make().path / "manifest.json"
    path.chmod(0o644)
    path.write_text("{", encoding="utf-8")
    code, out, _ = shell("artifacts", "ls")
    assert code == 0
    assert "DAMAGED" in out
    code, out, err = shell("artifacts", "show", "prefs")
    assert (code, out) == (5, "")
    assert "manifest" in err


def test_show_prints_the_manifest_and_the_digest(shell: Shell, make: Make) -> None:
    artifact = make(note="mine")
    _, out, _ = shell("artifacts", "show", "prefs")
    for word in (artifact.digest, "rows", "splits.train", "knob", "mine", "train-00000-of-00001.parquet"):
        assert word in out
    body = json.loads(shell("artifacts", "show", "prefs@v1", "--json")[1])
    assert body["ref"] == "prefs@v1"
    assert body["content_digest"] == artifact.digest
    assert body["schema"] == "zephyrctl.manifest/1"


def test_lineage_prints_a_tree(shell: Shell, make: Make) -> None:
    data = make("sft-data", "sft")
    made = InputRef(role="data", ref=str(data.ref), digest=data.digest, kind="sft")
    make("sft-e1", "model", files=FILES, inputs=[made])
    _, out, _ = shell("artifacts", "lineage", "sft-e1")
    assert out.splitlines()[1].startswith("  data: sft-data@v1  (sft, made by trial")
    body = json.loads(shell("artifacts", "lineage", "sft-e1", "--json")[1])
    assert body["inputs"][0]["digest"] == data.digest


def test_verify_tells_what_is_damaged_and_ends_with_5(shell: Shell, make: Make, store: Store) -> None:
    artifact = make()
    make("sft-data", "sft")
    assert shell("artifacts", "verify")[0] == 0
    data = artifact.path / "data" / "test-00000-of-00001.parquet"
    data.chmod(0o644)
    data.write_bytes(data.read_bytes()[:-1])
    tag(store, "sft-data", "good")
    (store.root / "sft-data" / "tags" / "good").write_text("{", encoding="utf-8")
    code, out, err = shell("artifacts", "verify")
    assert code == 5
    assert "prefs@v1  DAMAGED" in out
    assert "sft-data@v1  ok" in out
    assert "2 of 3 damaged" in err
    code, out, _ = shell("artifacts", "verify", "prefs", "--json")
    assert code == 5
    body = json.loads(out)
    assert (body["ok"], body["error"]["code"]) == (False, 5)
    assert "bytes found" in body["artifacts"][0]["problems"][0]
    assert shell("artifacts", "verify", "sft-data@v1")[0] == 0
    assert shell("artifacts", "verify", "absent")[0] == 4


def test_cat_prints_rows_as_they_are(shell: Shell, make: Make) -> None:
    make(rejects=[{"where": "x:1", "reason": "tie", "detail": "", "row": {"a": "\u202e"}}])
    _, out, _ = shell("artifacts", "cat", "prefs", "--split", "test", "--rows", "1")
    assert json.loads(out)["prompt"] == [{"role": "user", "content": "question 4"}]
    assert len(shell("artifacts", "cat", "prefs")[1].splitlines()) == 6
    assert json.loads(shell("artifacts", "cat", "prefs", "--rejects")[1])["reason"] == "tie"
    assert len(json.loads(shell("artifacts", "cat", "prefs", "--json")[1])["rows"]) == 6
    code, _, err = shell("artifacts", "cat", "prefs", "--split", "validation")
    assert code == 2
    assert "train, test" in err


def test_cat_keeps_a_terminal_safe_and_loses_nothing(shell: Shell, tmp_path: Path) -> None:
    nasty = "\x1b[2J\x9b31m \u202e \u200b \x7f \U000e0001 \u2028 plain ümläut \U0001f600"
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": nasty}), encoding="utf-8")
    assert shell("import", str(path), "--as", "prompts")[0] == 0
    _, out, _ = shell("artifacts", "cat", "prompts")
    assert json.loads(out)["prompt"][0]["content"] == nasty
    assert "ümläut \U0001f600" in out
    for character in "\x1b\x9b\u202e\u200b\x7f\U000e0001\u2028":
        assert character not in out


def test_tag_and_rm(shell: Shell, make: Make) -> None:
    make()
    assert shell("artifacts", "tag", "prefs@v1", "good")[:2] == (0, "prefs:good\n")
    assert json.loads(shell("artifacts", "show", "prefs:good", "--json")[1])["ref"] == "prefs@v1"
    assert "good" in shell("artifacts", "ls")[1]
    code, out, err = shell("artifacts", "rm", "prefs")
    assert (code, out) == (2, "")
    assert "--yes" in err
    assert shell("artifacts", "rm", "prefs", "--yes")[:2] == (0, "prefs@v1\n")
    assert shell("artifacts", "show", "prefs")[0] == 4
    assert shell("artifacts", "tag", "prefs", "good", "--delete")[0] == 4
    make(knob=2)
    shell("artifacts", "tag", "prefs", "good")
    assert shell("artifacts", "tag", "prefs", "good", "--delete")[:2] == (0, "prefs:good\n")


def test_import_prints_the_ref_alone(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n', "utf-8"
    )
    code, out, err = shell("import", str(path), "--as", "sft")
    assert (code, out) == (0, "sft-data@v1\n")
    assert "jsonl: messages" in err
    body = json.loads(shell("import", str(path), "--as", "sft", "--json")[1])
    assert (body["ref"], body["already"], body["shape"]) == ("sft-data@v1", True, "jsonl: messages")
    path.write_text("{\n", encoding="utf-8")
    code, out, err = shell("import", str(path), "--as", "sft")
    assert (code, out) == (5, "")
    assert f"{path}:1" in err
    code, out, _ = shell("import", str(path), "--as", "sft", "--json")
    assert json.loads(out)["error"]["kind"] == "bad_row"
