"""`zephyrctl ledger …` and `zephyrctl artifacts merge` as typed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Shell = Callable[..., Any]


def document(done: Any) -> Any:
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture
def sft(shell: Shell) -> str:
    """A small artifact of the sandbox, and the ledger that it leaves."""
    done = shell("gen-sft", "--teacher", "sandbox", "--rows", "12")
    assert done.code == 0, done.err
    return str(done.out.strip())


def test_costs_as_a_table_and_as_a_document(shell: Shell, sft: str) -> None:
    table = shell("ledger", "cost", "--by", "step")
    assert table.code == 0
    assert "gen-sft sft-data" in table.out
    assert "$0.00" in table.out
    told = document(shell("ledger", "cost", "--json"))
    assert [row["group"] for row in told["rows"]] == ["sandbox:teacher"]
    assert told["total"]["replies"] == told["total"]["calls"] > 12
    assert told["total"]["paid_usd"] == 0.0
    behind = document(shell("ledger", "cost", "--ref", sft, "--json"))
    assert behind["total"]["calls"] == told["total"]["calls"]


def test_without_a_ledger_there_is_nothing_to_show(shell: Shell) -> None:
    for command in (["cost"], ["show"], ["verify"], ["export"], ["batch", "ls"]):
        done = shell("ledger", *command)
        assert (done.code, done.out) == (4, "")
        assert "there is no ledger" in done.err
    assert not Path("artifacts").exists()


def test_calls_are_listed_and_shown_in_full(shell: Shell, sft: str) -> None:
    listed = document(shell("ledger", "show", "-n", "3", "--json"))["calls"]
    assert len(listed) == 3
    assert {line["state"] for line in listed} == {"ok"}
    assert len(shell("ledger", "show", "-n", "3").out.splitlines()) == 5
    key = listed[0]["key"]
    text = shell("ledger", "show", key[:12]).out
    assert key in text
    assert "reply: text" in text
    whole = document(shell("ledger", "show", key, "--json"))
    assert whole["reply"]["body"]["text"] in text.replace("\n  ", "\n")
    assert shell("ledger", "show", "--outcome", "refusal").out == ""
    wrong = shell("ledger", "show", "zz")
    assert (wrong.code, wrong.out) == (2, "")
    assert shell("ledger", "show", "0" * 12).code == 4


def test_what_a_model_says_drives_no_terminal_and_shows_no_key(
    shell: Shell, sft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-123456")
    import hashlib
    import zlib

    body = json.dumps({"text": "before \x1b[31mred\x1b[0m canary-123456 \u202eafter"}).encode()
    connection = sqlite3.connect("artifacts/ledger.sqlite")
    with connection:
        key = connection.execute("SELECT key FROM response").fetchone()[0]
        connection.execute(
            "UPDATE response SET body_z = ?, sha256 = ? WHERE key = ?",
            (zlib.compress(body), hashlib.sha256(body).hexdigest(), key),
        )
    connection.close()
    shown = shell("ledger", "show", key).out
    assert "before [31mred[0m [redacted] after" in shown


def test_calls_go_out_and_come_in_again(shell: Shell, sft: str) -> None:
    assert shell("gen-sft", "--teacher", "sandbox", "--rows", "5", "--seed", "3", "--out", "other").code == 0
    done = shell("ledger", "export", "--ref", sft, "-o", "calls.jsonl.gz")
    assert (done.code, done.out) == (0, "calls.jsonl.gz\n")
    whole = document(shell("ledger", "cost", "--json"))["total"]["calls"]
    behind = document(shell("ledger", "cost", "--ref", sft, "--json"))["total"]["calls"]
    assert 0 < behind < whole
    taken = document(shell("--store", "elsewhere", "ledger", "import", "calls.jsonl.gz", "--json"))
    assert taken["taken"]["calls.jsonl.gz"]["replies"] == behind
    # who has the calls makes the artifact again without asking anybody
    again = document(
        shell(
            "--store",
            "elsewhere",
            "gen-sft",
            "--teacher",
            "sandbox",
            "--rows",
            "12",
            "--max-usd",
            "0",
            "--json",
        )
    )
    first = document(shell("artifacts", "show", sft, "--json"))
    assert again["content_digest"] == first["content_digest"]
    assert shell("--store", "elsewhere", "ledger", "verify").code == 0


def test_export_writes_lines_on_stdout(shell: Shell, sft: str) -> None:
    done = shell("ledger", "export")
    assert done.code == 0
    keys = [json.loads(line)["key"] for line in done.out.splitlines()]
    assert len(keys) == document(shell("ledger", "cost", "--json"))["total"]["replies"]
    assert keys == sorted(set(keys))
    assert shell("ledger", "export", "--json").code == 2
    assert shell("ledger", "export", "--run", "0" * 16).code == 4
    assert shell("ledger", "export", "--run", "0" * 16, "--ref", sft).code == 2


def test_a_wrong_line_ends_with_its_place(shell: Shell, sft: str) -> None:
    assert shell("ledger", "export", "-o", "calls.jsonl").code == 0
    path = Path("calls.jsonl")
    path.write_text(path.read_text().replace('"draw":0', '"draw":1', 1))
    done = shell("--store", "elsewhere", "ledger", "import", "calls.jsonl", "--json")
    assert done.code == 5
    assert "calls.jsonl:1:" in json.loads(done.out)["error"]["message"]


def test_a_damaged_ledger_is_named(shell: Shell, sft: str) -> None:
    whole = shell("ledger", "verify")
    assert whole.code == 0
    assert "whole;" in whole.out
    connection = sqlite3.connect("artifacts/ledger.sqlite")
    with connection:
        connection.execute("UPDATE response SET sha256 = 'x' WHERE key = (SELECT MIN(key) FROM response)")
    connection.close()
    done = shell("ledger", "verify")
    assert done.code == 5
    assert "DAMAGED" in done.out
    assert "1 replies that do not fit their sha256" in done.err
    told = shell("ledger", "verify", "--json")
    assert told.code == 5
    assert (json.loads(told.out)["ok"], json.loads(told.out)["error"]["code"]) == (False, 5)


def test_parts_from_the_command_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = ["gen-sft", "--teacher", "sandbox", "--rows", "20"]
    one = document(shell("--store", "one", *stage, "--json"))
    for index in range(3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        for name, value in (("MIN", "0"), ("MAX", "2"), ("COUNT", "3")):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        done = shell(*stage, "--shard", "auto")
        assert (done.code, done.out) == (0, f"sft-data.shard-{index + 1}-of-3@v1\n")
    assert sorted(p.name for p in Path("artifacts").glob("*.sqlite")) == [
        f"ledger.shard-{index}-of-3.sqlite" for index in (1, 2, 3)
    ]
    missing = shell("artifacts", "merge", "sft-data.shard-1-of-3", "sft-data.shard-3-of-3")
    assert missing.code == 2
    assert "parts are missing: 2/3" in missing.err
    both = document(shell("artifacts", "merge", "sft-data.shard-*-of-3", "--json"))
    assert (both["ref"], both["content_digest"]) == ("sft-data@v1", one["content_digest"])
    assert document(shell(*stage, "--json"))["already"] is True
    ledgers = [str(path) for path in sorted(Path("artifacts").glob("ledger.shard-*.sqlite"))]
    assert shell("ledger", "merge", *ledgers).code == 0
    assert shell("ledger", "verify").code == 0
    assert (
        document(shell(*stage, "--again", "--max-usd", "0", "--json"))["content_digest"]
        == one["content_digest"]
    )


def test_plain_versions_are_merged_under_a_new_name(shell: Shell, sft: str) -> None:
    assert shell("gen-sft", "--teacher", "sandbox", "--rows", "15", "--out", "more").code == 0
    nameless = shell("artifacts", "merge", sft, "more")
    assert nameless.code == 2
    assert "--out NAME" in nameless.err
    both = document(shell("artifacts", "merge", sft, "more", "--out", "both", "--json"))
    more = document(shell("artifacts", "show", "more", "--json"))
    # the first seeds are the same, so the longer one adds only its own
    assert both["counts"]["rows"] == more["counts"]["rows"]
    assert both["counts"]["duplicates"] > 0
    assert shell("artifacts", "merge", "nothing-*", "--out", "x").code == 4


def test_requests_for_a_cluster(shell: Shell, sft: str) -> None:
    assert shell("ledger", "batch", "ls").code == 0
    assert document(shell("ledger", "batch", "ls", "--json"))["batches"] == []
    none = shell("ledger", "batch", "export", "-o", "requests.jsonl")
    assert none.code == 4
    assert "no request" in none.err
    assert not Path("requests.jsonl").exists()
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    from zephyrctl.ledger.entries import Request, Run
    from zephyrctl.ledger.ledger import Ledger

    wanted = Request.of(
        provider="openai",
        origin="cluster",
        endpoint="/chat/completions",
        model="cluster:m",
        body=body,
        draw=0,
    )
    with Ledger.open(Path("artifacts/ledger.sqlite")) as ledger:
        ledger.want([wanted], Run("7" * 16, "gen-sft", "sft-data")).result()
    done = shell("ledger", "batch", "export", "-o", "requests.jsonl")
    assert (done.code, done.out) == (0, "requests.jsonl\n")
    (line,) = Path("requests.jsonl").read_text().splitlines()
    assert json.loads(line)["custom_id"] == wanted.key
    reply = {
        "id": "1", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }  # fmt: skip
    answer = {"custom_id": wanted.key, "response": {"status_code": 200, "body": reply}, "error": None}
    Path("replies.jsonl").write_text(json.dumps(answer) + "\n")
    assert document(shell("ledger", "batch", "import", "replies.jsonl", "--json"))["stored"] == 1
    assert "hi" in shell("ledger", "show", wanted.key[:12]).out
    assert shell("ledger", "verify").code == 0
