"""Whatever a teacher does: the exit code is the promised one, nothing failed is a row, no key is written."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from zephyrctl.cli.app import run
from zephyrctl.providers.calling.retry import Retry
from zephyrctl.testing.teacher import LoopbackTeacher

CANARY = "sk-canary-2f9e61c07bd84a35"
GOOD = 10
BAD = 2


@dataclass(frozen=True)
class Case:
    """What a mode leads to when the bad rows always meet it: the exit code, the reason among the rejects (None = the
    command stops), and how often a bad row is asked (None = not fixed)."""

    code: int = 0
    reason: str | None = None
    asked: int | None = None


FINAL = {
    "empty": "empty", "length": "cut_off", "refusal": "refusal", "filtered": "refusal", "reasoning": "reasoning_cut",
}  # fmt: skip
UNREADABLE = ("truncated", "html", "object", "null", "nothing", "no_choices", "bad_utf8")
PASSING = ("408", "409", "500", "502", "503", "529", "drop", "rst")
CASES: dict[str, Case] = {
    **{mode: Case(reason=reason, asked=1) for mode, reason in FINAL.items()},
    **{mode: Case(reason="failed", asked=6) for mode in UNREADABLE},
    **{mode: Case(reason="failed", asked=6) for mode in PASSING},
    **{mode: Case(reason="failed") for mode in ("no_reply", "drip")},
    **{mode: Case(reason="failed", asked=1) for mode in ("huge", "bomb", "400", "422")},
    **{mode: Case(code=6) for mode in ("401", "402", "403", "quota")},
    **{mode: Case(code=2) for mode in ("404", "redirect", "refused_parameter")},
    **{f"429:{form}": Case(code=75) for form in ("huge",)},
}
ONCE = (
    "429:int",
    "429:float",
    "429:date",
    "429:ms",
    "429:negative",
    "429:absent",
    "500",
    "503",
    "html",
    "drop",
    "rst",
)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts take no time here; what a server asks for is kept."""
    monkeypatch.setattr(Retry, "backoff", lambda self, key, n: 0.001)


def _folder(tmp_path: Path, teacher: LoopbackTeacher, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = teacher.url if api == "anthropic" else teacher.openai_url
    (tmp_path / "zephyrctl.yaml").write_text(
        f"endpoints: {{box: {{base_url: '{url}', api: {api}, key_env: BOX_KEY, price: {{in: 1, out: 1}}}}}}\n"
    )
    rows = [f"Sort these words: pear{n} apple{n} fig{n}" for n in range(GOOD)]
    rows += [f"Sort these BAD words: kiwi{n} lime{n} plum{n}" for n in range(BAD)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOX_KEY", CANARY)


def _gen_sft(*more: str) -> int:
    return run(
        ["gen-sft", "--teacher", "box:teacher", "--prompts", "prompts.jsonl", "--rounds", "0", "--yes",
         "--set", "max_failures=1", "--set", "deadline=0.6", *more]
    )  # fmt: skip


def _rows(folder: Path, part: str) -> list[dict[str, Any]]:
    files = sorted((folder / "artifacts" / "sft-data" / "v1" / part).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _written(folder: Path) -> bytes:
    """Every byte under a folder, with what is packed unpacked as well."""
    parts: list[bytes] = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = file.read_bytes()
        parts.append(raw)
        if file.suffix == ".parquet":
            parts.append(json.dumps(pq.read_table(file).to_pylist(), default=str).encode())
        if file.suffix == ".gz":
            parts.append(gzip.decompress(raw))
        if file.name.endswith(".sqlite"):
            parts += _unpacked(file)
    return b"\n".join(parts)


def _unpacked(ledger: Path) -> list[bytes]:
    connection = sqlite3.connect(ledger)
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        cells = [
            cell for table in tables for row in connection.execute(f"SELECT * FROM {table}") for cell in row
        ]
    finally:
        connection.close()
    found = []
    for cell in cells:
        found.append(cell if isinstance(cell, bytes) else str(cell).encode())
        if isinstance(cell, bytes):
            try:
                found.append(zlib.decompress(cell))
            except zlib.error:
                continue
    return found


def _no_key(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err
    assert CANARY.encode() not in _written(folder)
    return shown.err


@pytest.mark.parametrize("api", ["openai", "responses", "anthropic"])
@pytest.mark.parametrize("mode", sorted(CASES))
def test_a_mode_that_stays(
    mode: str, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[mode]
    asked: list[int] = []

    def script(times: int, body: Any) -> str:
        bad = "BAD" in json.dumps(body)
        if bad:
            asked.append(times)
        return mode if bad else "ok"

    with LoopbackTeacher(script=script) as teacher:
        _folder(tmp_path, teacher, api, monkeypatch)
        code = _gen_sft()
        if code == 75 and case.reason == "failed":
            # nothing else was answered after these rows: it could have been an outage. The second time it is the rows.
            code = _gen_sft()
        said = _no_key(tmp_path, capsys)
    assert code == case.code, said
    if case.reason is None:
        assert not (tmp_path / "artifacts" / "sft-data").exists()
        return
    kept = [row["messages"][0]["content"] for row in _rows(tmp_path, "data")]
    assert len(kept) == GOOD
    assert not any("BAD" in text for text in kept)
    reasons = [row["reason"].replace("filtered", "refusal") for row in _rows(tmp_path, "rejects")]
    assert reasons == [case.reason] * BAD
    if case.asked is not None:
        assert len(asked) in (BAD * case.asked, 2 * BAD * case.asked)


@pytest.mark.parametrize("mode", ONCE)
def test_a_mode_that_passes(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(times: int, body: Any) -> str:
        return mode if "BAD" in json.dumps(body) and times == 0 else "ok"

    with LoopbackTeacher(script=script) as teacher:
        _folder(tmp_path, teacher, "openai", monkeypatch)
        code = _gen_sft()
        said = _no_key(tmp_path, capsys)
    assert code == 0, said
    assert len(_rows(tmp_path, "data")) == GOOD + BAD


@pytest.mark.parametrize(
    ("mode", "code"),
    [
        ("500", 75),
        ("html", 75),
        ("rst", 75),
        ("429:huge", 75),
        ("refusal", 9),
        ("empty", 9),
        ("401", 6),
        ("404", 2),
    ],
)
def test_a_teacher_that_does_nothing_else(
    mode: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LoopbackTeacher(script=mode) as teacher:
        _folder(tmp_path, teacher, "openai", monkeypatch)
        ended = _gen_sft("--set", "max_failures=0.5")
        said = _no_key(tmp_path, capsys)
    assert ended == code, said
    assert not (tmp_path / "artifacts" / "sft-data").exists()


def test_text_that_utf8_cannot_hold_is_mended_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LoopbackTeacher(script="surrogate") as teacher:
        _folder(tmp_path, teacher, "openai", monkeypatch)
        assert _gen_sft() == 0
        _no_key(tmp_path, capsys)
    assert {row["messages"][-1]["content"] for row in _rows(tmp_path, "data")} == {"half � pair"}
