"""How the ledger's commands look: prices that are not known, columns, the words of a reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zephyrctl.cli.ledger_text import call_text, costs_text, lines_text, spoken, taken_text
from zephyrctl.ledger.absorb import Taken
from zephyrctl.ledger.report import Cost, Line, total

CHAT = {"model": "m", "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
MESSAGE = {"model": "m", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"}
RESPONSE = {
    "model": "m", "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "hello"}]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "body", "said"),
    [
        ("/chat/completions", CHAT, "hello"),
        ("/v1/messages", MESSAGE, "hello"),
        ("/responses", RESPONSE, "hello"),
        ("reply/1", {"text": "hello"}, "hello"),
        ("chat/1 --made-elsewhere", CHAT, "hello"),
        ("/chat/completions", {"strange": 1}, None),
        ("/chat/completions", "no object", None),
    ],
)
def test_the_words_of_a_reply(endpoint: str, body: Any, said: str | None) -> None:
    assert spoken(endpoint, body) == said


def test_an_unknown_price_is_never_shown_as_free() -> None:
    known = Cost("a", calls=2, replies=2, paid_uusd=1_500_000, prompt_tokens=1200)
    some = Cost("b", calls=3, replies=3, paid_uusd=500_000, unpriced=1)
    none = Cost("c", calls=2, replies=1, unpriced=1, doubt=1, doubt_unpriced=1)
    found = [known, some, none]
    lines = {line.split()[0]: line for line in costs_text("model", found, total(found)).splitlines()}
    assert lines["a"].split()[-2] == "$1.50"
    assert "$0.5000 + 1 of unknown price" in lines["b"]
    assert lines["c"].count("unknown") == 2
    assert "$0" not in lines["c"]
    assert "$2.00 + 2 of unknown price" in lines["all"]
    assert "cached" not in lines["model"]
    assert "tokens in" in lines["model"]


def test_failures_are_told_with_their_reason() -> None:
    line = Line("ab" * 32, "p:m", "gen-sft", "error", "", 0.0, None, None, None, "server_error")
    assert "error (server_error)" in lines_text([line])
    assert lines_text([]) == ""


def test_a_call_without_a_reply() -> None:
    found = {
        "key": "ab" * 32, "provider": "p", "origin": "o", "endpoint": "e", "model": "p:m", "draw": 0, "created": 0.0,
        "body": {"input": "what?"}, "used_by": [], "reply": None,
        "attempts": [
            {
                "n": 0, "state": "timeout", "step": "gen-sft", "started": 1.0, "ended": 4.5, "http_status": None,
                "error_class": "timeout", "request_id": "r-1", "cost_uusd": None, "reserved_uusd": 20_000,
                "batch": None,
            }
        ],
    }  # fmt: skip
    text = call_text(found)
    assert json.dumps({"input": "what?"}, indent=2).splitlines()[1].strip() in text
    assert (
        "attempt 1: timeout, gen-sft, 1970-01-01 00:00:01, took 3.5 s, timeout, request id r-1, at most $0.0200"
        in text
    )
    assert text.endswith("no reply")


def test_what_came_in_adds_up() -> None:
    text = taken_text("other.sqlite", Taken(seen=1200, requests=1000, replies=900, attempts=950, updated=3))
    assert text == (
        "other.sqlite: 1,200 requests looked at, 200 known; new: 1,000 requests, 900 replies, 950 attempts, 3 completed"
    )
