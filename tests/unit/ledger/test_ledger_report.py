"""What the ledger tells: money by group, the newest calls, one call in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.ledger.entries import Ended, Finished, Intent, Request, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.report import By, Filter, Scope, call, costs, find_key, newest, total
from zephyrctl.money import Tokens

SFT = Run("1" * 16, "gen-sft", "sft-data")
PREFS = Run("2" * 16, "gen-prefs", "feedback")


def request(n: int, model: str = "m") -> Request:
    body = {"model": model, "messages": [{"role": "user", "content": f"question {n}"}]}
    return Request.of(provider="p", origin="o", endpoint="e", model=f"p:{model}", body=body, draw=0)


def answer(
    ledger: Ledger,
    asked: Request,
    run: Run,
    *,
    cost: int | None,
    reserve: int | None = 100,
    outcome: str = "text",
) -> None:
    (attempt,) = ledger.begin_many([Intent(asked, reserve)], run).result()
    assert isinstance(attempt, int)
    reply = StoredReply(b'{"text":"hi"}', outcome, "stop", Tokens(10, 4, cached=6, reasoning=1), "m-1")
    ledger.finish_many([Finished(attempt, asked.key, reply, cost)]).result()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    with Ledger.open(tmp_path / "ledger.sqlite") as made:
        answer(made, request(1), SFT, cost=30)
        answer(made, request(2), SFT, cost=12, outcome="refusal")
        answer(made, request(3, "free"), PREFS, cost=0)
        answer(made, request(4, "unknown"), PREFS, cost=None, reserve=None)
        begun = made.begin_many(
            [Intent(request(5), 100), Intent(request(6), 60), Intent(request(7, "unknown"))], SFT
        )
        doubt, flying, unpriced = begun.result()
        assert isinstance(doubt, int)
        assert isinstance(unpriced, int)
        assert isinstance(flying, int)
        made.fail_many(
            [Ended(doubt, "timeout", "timeout"), Ended(unpriced, "in_doubt", "process_gone")]
        ).result()
        made.used(PREFS, [request(1).key]).result()
        made.want([request(8)], SFT).result()
    return made


def test_money_by_model(ledger: Ledger) -> None:
    found = {cost.group: cost for cost in costs(ledger, "model")}
    assert list(found) == ["p:m", "p:unknown", "p:free"]
    paid = found["p:m"]
    assert (paid.calls, paid.replies, paid.paid_uusd, paid.unpriced) == (4, 2, 42, 0)
    assert (paid.doubt, paid.doubt_uusd, paid.open, paid.reserved_uusd) == (1, 100, 1, 60)
    assert (paid.prompt_tokens, paid.cached_tokens, paid.completion_tokens, paid.reasoning_tokens) == (
        20,
        12,
        8,
        2,
    )
    assert paid.outcomes == {"refusal": 1, "text": 1}
    assert found["p:free"].document()["paid_usd"] == 0.0


def test_an_unknown_price_is_unknown_and_not_nothing(ledger: Ledger) -> None:
    unknown = next(cost for cost in costs(ledger, "model") if cost.group == "p:unknown").document()
    assert (unknown["paid_usd"], unknown["replies_without_price"]) == (None, 1)
    assert unknown["in_doubt"] == {"calls": 1, "usd": None, "without_price": 1}
    whole = total(costs(ledger, "model")).document()
    assert (whole["paid_usd"], whole["replies_without_price"]) == (42e-6, 1)


@pytest.mark.parametrize("by", ["model", "step", "provider", "day"])
def test_every_grouping_adds_up_to_what_the_ledger_knows(ledger: Ledger, by: By) -> None:
    whole = total(costs(ledger, by))
    spend = ledger.spend()
    assert (whole.paid_uusd, whole.doubt_uusd, whole.reserved_uusd) == (
        spend.settled,
        spend.doubt,
        spend.reserved,
    )
    assert (whole.calls, whole.replies) == (7, 4)


def test_steps_have_names_and_a_scope_includes_what_was_replayed(ledger: Ledger) -> None:
    steps = [cost.group for cost in costs(ledger, "step")]
    assert steps == [f"gen-sft sft-data ({SFT.id})", f"gen-prefs feedback ({PREFS.id})"]
    behind = costs(ledger, "step", Scope((PREFS.id,)))
    assert [(cost.group.split()[0], cost.replies, cost.paid_uusd) for cost in behind] == [
        ("gen-sft", 1, 30),
        ("gen-prefs", 2, 0),
    ]


def test_the_newest_calls_by_what_they_are(ledger: Ledger) -> None:
    def keys(**wanted: str) -> list[str]:
        return [line.key for line in newest(ledger, Filter(**wanted), 20)]

    assert keys()[0] == request(7, "unknown").key
    assert len(keys()) == 7
    assert keys(outcome="refusal") == [request(2).key]
    assert keys(model="FREE") == [request(3, "free").key]
    assert keys(state="timeout") == [request(5).key]
    assert keys(state="inflight") == [request(6).key]
    assert keys(state="waiting") == [request(8).key]
    assert [line.key for line in newest(ledger, Filter(), 2)] == keys()[:2]
    (line,) = newest(ledger, Filter(outcome="refusal"), 1)
    assert (line.step, line.state, line.cost_uusd, line.prompt_tokens) == (
        f"gen-sft sft-data ({SFT.id})",
        "ok",
        12,
        10,
    )
    assert {x.key for x in newest(ledger, Filter(scope=Scope((PREFS.id,))), 20)} == {
        request(1).key, request(3, "free").key, request(4, "unknown").key,
    }  # fmt: skip


def test_one_call_in_full(ledger: Ledger) -> None:
    found = call(ledger, request(1).key)
    assert found["body"]["messages"][0]["content"] == "question 1"
    assert [attempt["state"] for attempt in found["attempts"]] == ["ok"]
    assert found["reply"]["body"] == {"text": "hi"}
    assert found["reply"]["usage"] == [10, 4, 6, 0, 1]
    assert found["used_by"] == [f"gen-prefs feedback ({PREFS.id})", f"gen-sft sft-data ({SFT.id})"]
    assert call(ledger, request(8).key)["reply"] is None
    with pytest.raises(RefNotFound):
        call(ledger, "0" * 64)


def test_the_beginning_of_a_key_is_enough(ledger: Ledger) -> None:
    key = request(1).key
    assert find_key(ledger, key[:8].upper()) == find_key(ledger, key) == key
    for wrong in ("abc", "xyzxyzxyz", key + "0"):
        with pytest.raises(UsageError, match="not the beginning"):
            find_key(ledger, wrong)
    with pytest.raises(RefNotFound):
        find_key(ledger, "0" * 20)


def test_several_keys_are_listed(ledger: Ledger) -> None:
    for last in "ab":
        row = ("abcdef" + last * 58, b"", "p", "o", "e", f"p:{last}", 0, 0.0)
        ledger.write(
            lambda c, row=row: c.execute("INSERT INTO request VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        ).result()
    with pytest.raises(UsageError, match="several keys begin with abcdef") as raised:
        find_key(ledger, "abcdef")
    assert "p:a" in raised.value.message
    assert "p:b" in raised.value.message
    ledger.close()
