"""From settings to limits: budgets are divided among shards, replays need neither keys nor money."""

from pathlib import Path

import pytest

from zephyrctl.asking.calling import budget_of, mine, name_of, replay_only, site_of
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import check_keys, trouble
from zephyrctl.errors import AuthError, UsageError
from zephyrctl.ledger.entries import Budget
from zephyrctl.project import Project
from zephyrctl.providers.base import UNPAID, Answer, Failure
from zephyrctl.records import Message, PromptRow, prompt_id
from zephyrctl.stages.gen_sft.config import GenSftConfig


def config(**settings: object) -> GenSftConfig:
    return GenSftConfig.model_validate({"teacher": "gpt-4", **settings})


def test_limits_are_those_of_the_step_and_of_the_project() -> None:
    assert budget_of(config(), Project()) == Budget()
    assert budget_of(config(max_usd=1.5), Project()) == Budget(step=1_500_000)
    assert budget_of(config(max_usd=2), Project(max_usd=50)) == Budget(2_000_000, 50_000_000)


def test_a_shard_has_its_part_of_money_prompts_and_name() -> None:
    part = config(max_usd=10, shard="2/4")
    assert budget_of(part, Project(max_usd=20)) == Budget(2_500_000, 5_000_000, parts=4)
    assert name_of(part, "sft-data") == "sft-data.shard-2-of-4"
    assert name_of(config(out="mine"), "sft-data") == "mine"
    rows = [
        PromptRow(prompt_id=prompt_id(p), prompt=p)
        for p in ([Message(role="user", content=str(i))] for i in range(99))
    ]
    seeds = [Seed("x", "train", row) for row in rows]
    taken = [mine(config(shard=f"{i}/4"), seeds) for i in (1, 2, 3, 4)]
    assert sorted(s.row.prompt_id for part in taken for s in part) == sorted(r.prompt_id for r in rows)
    assert all(taken)
    assert mine(config(), seeds) == seeds


def test_the_site_knows_price_effort_and_what_may_be_dropped() -> None:
    site = site_of(config(price="in=3,out=15", effort="low", may_drop=["seed", "temperature"]), Project())
    assert site.price is not None
    assert (site.price.input, site.price.output, site.effort) == (3.0, 15.0, "low")
    assert site.may_drop == frozenset({"seed", "temperature"})
    with pytest.raises(UsageError, match="in="):
        site_of(config(price="3 dollars"), Project())


@pytest.mark.parametrize("settings", [{"max_usd": 0}, {"accept_partial": True}])
def test_a_replay_needs_no_key(settings: dict[str, object]) -> None:
    assert replay_only(config(**settings))
    (spec,) = check_keys(["gpt-4"], site_of(config(**settings), Project()))
    assert spec.where == "openai"
    with pytest.raises(AuthError):
        check_keys(["gpt-4"], site_of(config(), Project()))


def test_every_reply_that_is_no_data_has_its_reason(tmp_path: Path) -> None:
    def said(outcome: str, text: str = "hm") -> Answer:
        return Answer(text, outcome, "stop", "m", None, "k", False)  # type: ignore[arg-type]

    assert trouble(said("text")) is None
    reasons = {
        outcome: trouble(said(outcome))
        for outcome in ("length", "reasoning_cut", "refusal", "filtered", "empty")
    }
    assert {k: v and v[0] for k, v in reasons.items()} == {
        "length": "cut_off",
        "reasoning_cut": "reasoning_cut",
        "refusal": "refusal",
        "filtered": "filtered",
        "empty": "empty",
    }
    assert trouble(said("text", " \n")) == ("empty", "nothing but white space")
    assert trouble(Failure("timeout", "10 s", "k")) == ("failed", "timeout: 10 s")
    assert (trouble(Failure(UNPAID, "", "k")) or ("",))[0] == UNPAID
