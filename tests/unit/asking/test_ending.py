"""What a stage says about its money, and how a partial artifact is marked."""

from types import SimpleNamespace
from typing import Any

import pytest

from zephyrctl.asking.ending import close_partial, money_sentence
from zephyrctl.errors import StageRejected
from zephyrctl.events import Recorder


def teacher(
    *,
    calls: int = 0,
    replayed: int = 0,
    cost: float | None = 0.0,
    saved: float = 0.0,
    doubt: tuple[int, float] = (0, 0.0),
) -> dict[str, Any]:
    return {
        "model": "gpt",
        "calls": calls,
        "replayed": replayed,
        "cost_usd": cost,
        "saved_usd": None if cost is None else saved,
        "in_doubt": {"calls": doubt[0], "usd": doubt[1]},
    }


def test_what_costs_nothing_is_not_talked_about() -> None:
    assert money_sentence([teacher(calls=10, replayed=5)], usable=3, unit="pair") == ""


def test_paid_saved_doubt_and_the_price_of_a_row() -> None:
    teachers = [teacher(calls=1500, cost=3.0), teacher(replayed=200, saved=1.0, doubt=(2, 0.5))]
    assert money_sentence(teachers, usable=1000, unit="pair") == (
        "paid now: $3.00 for 1,500 calls; not paid again: 200 replies worth $1.00 at today's price; "
        "in doubt: 2 calls, at most $0.5000; $0.0040 per usable pair"
    )


def test_an_unknown_price_is_named() -> None:
    sentence = money_sentence([teacher(calls=1, cost=None)], usable=0, unit="pair")
    assert "a price that is not known (gpt)" in sentence
    assert "$" not in sentence


def staging() -> Any:
    return SimpleNamespace(counts={}, headline={})


def test_some_finished_rows_make_a_marked_artifact() -> None:
    made, told = staging(), Recorder()
    close_partial(made, told, finished=812, of=2000, kept=800, unit="prompts")
    assert made.counts == {"partial": True, "finished": 812, "of": 2000}
    assert made.headline == {"finished": "812 of 2000 prompts"}
    assert "812 of 2,000 prompts" in told.texts()[0]


def test_all_finished_is_no_part() -> None:
    made = staging()
    close_partial(made, Recorder(), finished=5, of=5, kept=5, unit="prompts")
    assert made.counts == {}


def test_nothing_finished_is_no_artifact() -> None:
    with pytest.raises(StageRejected, match="0 of 7 prompts") as caught:
        close_partial(staging(), Recorder(), finished=0, of=7, kept=0, unit="prompts")
    assert caught.value.exit_code == 9
