"""Requests out as a file, replies in again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bulk_office import RUN, Office, OfficeProvider, jobs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts import durable
from zephyrctl.errors import EnvironmentFault, RefNotFound, UsageError
from zephyrctl.ledger.entries import Batch, Intent, Request, Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.batchfile import IMPORT_RUN, Imported, export_requests, import_replies


class Cluster(OfficeProvider):
    """A model out of reach."""

    def __init__(self, name: str = "llama") -> None:
        super().__init__(Office(), name=name)
        self.label, self.origin, self.offline = f"cluster:{name}", "endpoint:cluster", True


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def wanted(ledger: Ledger, number: int, name: str = "llama", run: Run = RUN) -> list[Request]:
    requests = [job.request for job in jobs_of(Cluster(name), number)]
    ledger.want(requests, run).result()
    return requests


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def answered(line: dict[str, Any]) -> dict[str, Any]:
    """What a batch runner makes of a line."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "llama",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": f"re: {line['body']['messages'][-1]['content']}"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 5},
    }
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "vllm-1", "custom_id": line["custom_id"], "response": response, "error": None}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_there_and_back_again(ledger, tmp_path):
    requests = wanted(ledger, 5)
    out = tmp_path / "deep" / "requests.jsonl"
    assert export_requests(ledger, out) == 5
    lines = lines_of(out)
    assert {line["custom_id"] for line in lines} == {request.key for request in requests}
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    bodies = {line["custom_id"]: line["body"] for line in lines}
    assert bodies == {request.key: dict(request.body) for request in requests}

    replies = write(tmp_path / "replies.jsonl", [answered(line) for line in reversed(lines)])
    assert import_replies(ledger, replies) == Imported(stored=5)
    known = ledger.known([request.key for request in requests])
    for request in requests:
        said = json.loads(known[request.key].body)["choices"][0]["message"]["content"]
        assert said == f"re: {request.body['messages'][-1]['content']}"
        assert known[request.key].outcome == "text"
    assert ledger.spend().settled == 0

    assert import_replies(ledger, replies) == Imported(already=5)
    assert ledger.stats(IMPORT_RUN.id).states == {"ok": 5}
    assert export_requests(ledger, tmp_path / "rest.jsonl") == 0
    assert not (tmp_path / "rest.jsonl").exists()


def test_replies_cost_what_the_price_says(ledger, tmp_path):
    wanted(ledger, 2)
    export_requests(ledger, tmp_path / "q.jsonl")
    replies = write(tmp_path / "r.jsonl", [answered(line) for line in lines_of(tmp_path / "q.jsonl")])
    import_replies(ledger, replies, price=Price(1.0, 2.0))
    assert ledger.spend().settled == 2 * 15


def test_what_is_being_asked_or_answered_stays_out(ledger, tmp_path):
    requests = wanted(ledger, 5)
    answered_one, leased, batched = requests[:3]
    [attempt] = ledger.begin_many([Intent(leased, 0)], RUN).result()
    assert isinstance(attempt, int)
    batch = Batch("b", "openai", "endpoint:cluster", "m", RUN.id, "building")
    ledger.begin_batch(batch, [Intent(batched, 0)], RUN).result()
    line = {"custom_id": answered_one.key, "body": dict(answered_one.body)}
    import_replies(ledger, write(tmp_path / "one.jsonl", [answered(line)]))

    out = tmp_path / "q.jsonl"
    assert export_requests(ledger, out) == 2
    assert {line["custom_id"] for line in lines_of(out)} == {request.key for request in requests[3:]}
    busy = [answered({"custom_id": r.key, "body": dict(r.body)}) for r in (leased, batched)]
    assert import_replies(ledger, write(tmp_path / "busy.jsonl", busy)) == Imported(busy=2)


def test_a_file_holds_one_model_and_the_choice_is_ours(ledger, tmp_path):
    wanted(ledger, 2, "llama")
    wanted(ledger, 3, "org/qwen:7b", Run("run-2"))
    out = tmp_path / "q.jsonl"
    with pytest.raises(UsageError, match=r"cluster:llama at endpoint:cluster \(2\)") as caught:
        export_requests(ledger, out)
    assert "--model" in (caught.value.hint or "")
    assert not out.exists()
    assert export_requests(ledger, out, model="org/qwen:7b") == 3
    assert export_requests(ledger, out, model="cluster:llama") == 2
    assert export_requests(ledger, out, run="run-2") == 3
    assert export_requests(ledger, out, model="llama", origin="endpoint:cluster") == 2
    assert export_requests(ledger, out, model="llama", origin="elsewhere") == 0
    assert export_requests(ledger, out, model="another") == 0


def test_requests_of_another_form_are_not_in_the_file(ledger, tmp_path):
    body = {"model": "claude", "messages": [], "max_tokens": 1}
    request = Request.of(
        provider="anthropic", origin="x", endpoint="/v1/messages", model="anthropic:claude", body=body, draw=0
    )
    ledger.want([request], RUN).result()
    assert export_requests(ledger, tmp_path / "q.jsonl") == 0
    line = answered({"custom_id": request.key, "body": {"messages": [{"content": "x"}]}})
    assert import_replies(ledger, write(tmp_path / "r.jsonl", [line])) == Imported(unknown=1)


def test_lines_that_bring_no_reply_are_counted_and_named(ledger, tmp_path):
    requests = wanted(ledger, 4)
    good, failed, refused, broken = ({"custom_id": r.key, "body": dict(r.body)} for r in requests)
    empty = answered(broken)
    empty["response"]["body"] = {"choices": []}
    path = write(
        tmp_path / "replies.jsonl",
        [
            answered(good),
            answered(good),
            "{cut off",
            "",
            '{"no": "custom_id"}',
            {
                "custom_id": failed["custom_id"],
                "response": {"status_code": 500},
                "error": {"message": "out of memory"},
            },
            {
                "custom_id": refused["custom_id"],
                "response": {"status_code": 400, "body": {"error": {"message": "no"}}},
            },
            answered({"custom_id": "f" * 64, "body": good["body"]}),
            empty,
        ],
    )
    counts = import_replies(ledger, path)
    assert (counts.stored, counts.already, counts.errors, counts.unknown, counts.busy) == (1, 1, 2, 1, 0)
    assert [bad.partition(": ")[0] for bad in counts.bad] == [f"{path}:{n}" for n in (3, 5, 9)]
    assert export_requests(ledger, tmp_path / "rest.jsonl") == 3, "they still wait"


@settings(deadline=None)  # each example makes a ledger
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.from_type(str).map(lambda text: json.dumps({"custom_id": text}).encode()),
            st.recursive(
                st.none() | st.integers() | st.text(max_size=5),
                lambda inner: st.dictionaries(
                    st.sampled_from(["response", "body", "error", "status_code"]), inner
                ),
                max_leaves=6,
            ).map(lambda value: json.dumps({"custom_id": "k", "response": value}).encode()),
        ),
        max_size=8,
    )
)
def test_no_file_whatever_brings_the_import_down(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("any")
    (folder / "r.jsonl").write_bytes(b"\n".join(lines))
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert import_replies(ledger, folder / "r.jsonl").stored == 0


def test_a_file_that_is_not_there(ledger, tmp_path):
    with pytest.raises(RefNotFound, match=r"nothing\.jsonl"):
        import_replies(ledger, tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_file_is_never_half_written(ledger, tmp_path, monkeypatch, call):
    wanted(ledger, 2)
    out = tmp_path / "q.jsonl"
    out.write_text("before")

    class Full(durable.Calls):
        pass

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28), str(out))

    setattr(Full, call, lambda self, *args: fail())
    monkeypatch.setattr(durable, "calls", Full())
    with pytest.raises(EnvironmentFault, match="no space left"):
        export_requests(ledger, out)
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".q")] == []


def test_a_large_file_goes_in_by_groups(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr("zephyrctl.providers.batchfile._GROUP", 3)
    requests = wanted(ledger, 10)
    lines = [answered({"custom_id": r.key, "body": dict(r.body)}) for r in requests]
    assert import_replies(ledger, write(tmp_path / "r.jsonl", [*lines, lines[0]])) == Imported(
        stored=10, already=1
    )
