"""Money at the stages: estimates, consent, budgets, pilots and partial artifacts, against a priced loopback teacher."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import BudgetReached, StageRejected, UsageError
from zephyrctl.events import Recorder, Table
from zephyrctl.project import Project
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft
from zephyrctl.testing.teacher import LoopbackTeacher

ROWS = 12
POOL = ["box:pool-a", "box:pool-b"]
PRICE = {"in": 100, "out": 400}
"""US dollars per million tokens: so dear that small runs cost dollars."""

DEAR = {"in": 1000, "out": 4000}
"""A price at which they cost more than anybody spends unasked."""


@pytest.fixture
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Sort these words: pear{i} apple{i} fig{i}"} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


Shop = Callable[..., Work]


@pytest.fixture
def shop(tmp_path: Path, teacher: LoopbackTeacher) -> Shop:
    def make(
        store: str = "artifacts", *, price: object = PRICE, max_usd: float | None = None, **more: Any
    ) -> Work:
        box = {"base_url": teacher.openai_url, "price": price}
        project = Project.model_validate({"endpoints": {"box": box}, "max_usd": max_usd})
        return Work(Store.open(tmp_path / store), Recorder(), project=project, **more)

    return make


def sft(prompts: str, **settings: Any) -> GenSftConfig:
    return GenSftConfig.model_validate(
        {"teacher": "box:teacher", "prompts": prompts, "max_tokens": 60, **settings}
    )


def prefs(prompts: str, **settings: Any) -> GenPrefsConfig:
    small = {"max_tokens": 60, "judge_max_tokens": 200}
    return GenPrefsConfig.model_validate(
        {"teacher": "box:teacher", "pool": POOL, "prompts": prompts, **small, **settings}
    )


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def texts(work: Work) -> str:
    told = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(told, Recorder)
    return "\n".join(told.texts())


def titles(work: Work) -> list[str]:
    told = work.emit.outside  # type: ignore[attr-defined]
    return [event.title for event in told.events if isinstance(event, Table)]


def cost(artifact: Artifact) -> float:
    return sum(t["cost_usd"] for t in artifact.manifest.teachers)


def rows_of(artifact: Artifact) -> list[Any]:
    return [row for _, _, row in artifact.rows()]


@pytest.mark.parametrize("stage", ["gen-sft", "gen-prefs"])
def test_a_dry_run_bounds_what_is_then_called_and_paid(
    stage: str, shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    run: Any = gen_sft if stage == "gen-sft" else gen_prefs
    config = sft(prompts) if stage == "gen-sft" else prefs(prompts)
    dry = shop(dry_run=True)
    plan = run(config, dry).plan
    assert teacher.requests == 0
    assert not dry.store.root.exists()
    assert titles(dry) == [f"{stage} plan", "ways to do it"]
    estimate = plan["estimate"]
    for name in ("input_tokens", "output_tokens", "usd"):
        assert estimate[name]["likely"] == pytest.approx(
            sum(p[name]["likely"] for p in estimate["parts"]), abs=3
        )
    artifact = made(run(config, shop(yes=True)))
    assert 0 < teacher.billed_calls <= estimate["calls"]["most"]
    assert 0 < cost(artifact) <= estimate["usd"]["high"]
    tokens = [t["tokens"] for t in artifact.manifest.teachers]
    assert sum(t["prompt"] for t in tokens) <= estimate["input_tokens"]["high"]
    assert sum(t["completion"] for t in tokens) <= estimate["output_tokens"]["high"]
    assert plan["ladder"][0]["usd"] == estimate["usd"]
    assert plan["training"]["optimiser_steps"] >= 1


def test_a_dry_run_says_what_the_ledger_already_holds(
    shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    gen_sft(sft(prompts, rows=5), shop(yes=True))
    billed = teacher.billed_calls
    dry = shop(dry_run=True)
    plan = gen_sft(sft(prompts), dry).plan
    assert plan["ledger"]["replies"] == billed == 15
    assert plan["ledger"]["rest"]["calls"]["likely"] == 3 * (ROWS - 5)
    assert plan["ladder"][1]["usd"] == plan["ledger"]["rest"]["usd"]
    assert "the ledger already holds 15 of these replies" in texts(dry)
    whole = gen_sft(sft(prompts, rows=5), shop(dry_run=True, again=True)).plan
    assert whole["ledger"]["rest"]["usd"] == {"low": 0.0, "likely": 0.0, "high": 0.0}
    assert teacher.billed_calls == billed


def test_seen_replies_make_the_estimate_better(shop: Shop, prompts: str, teacher: LoopbackTeacher) -> None:
    before = gen_sft(sft(prompts), shop(dry_run=True)).plan["estimate"]
    paid = made(gen_sft(sft(prompts, rows=8), shop(yes=True)))
    after = gen_sft(sft(prompts, rows=8), shop(dry_run=True, again=True)).plan["estimate"]
    tokens = sum(t["tokens"]["completion"] for t in paid.manifest.teachers)
    assert after["output_tokens"]["likely"] == pytest.approx(tokens, rel=0.25)
    assert before["output_tokens"]["likely"] > 2 * tokens


def test_a_large_estimate_needs_a_word(shop: Shop, prompts: str, teacher: LoopbackTeacher) -> None:
    config = sft(prompts, max_tokens=1000)
    with pytest.raises(UsageError, match="needs your consent") as caught:
        gen_sft(config, shop(price=DEAR))
    assert "--max-usd" in str(caught.value.hint)
    questions: list[str] = []

    def no(question: str) -> bool:
        questions.append(question)
        return False

    with pytest.raises(UsageError, match="not agreed to"):
        gen_sft(config, shop(price=DEAR, ask=no))
    assert len(questions) == 1
    assert teacher.requests == 0
    assert not shop(price=DEAR).store.root.exists()
    for consent in ({"yes": True}, {"ask": lambda question: True}, {"max_usd": 1000.0}):
        assert made(gen_sft(config, shop(f"artifacts-{next(iter(consent))}", price=DEAR, **consent)))
    assert made(gen_sft(sft(prompts, max_tokens=1000, max_usd=1000), shop("artifacts-limit", price=DEAR)))
    # what is paid already needs no consent again
    assert made(gen_sft(config, shop("artifacts-yes", price=DEAR, again=True))).ref.version == 2


def test_without_consent_a_wrong_estimate_ends_at_five_dollars(
    shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    teacher.answer = lambda body: "word " * 900
    config = sft(prompts, rounds=0, max_tokens=1000)
    work = shop(price={"in": 0, "out": 1000})
    with pytest.raises(UsageError, match=r"more than \$5\.00 needs your consent"):
        gen_sft(config, work)
    assert 0 < teacher.billed_calls <= 5
    # somebody's word lets it go on with what is there
    assert made(gen_sft(config, shop(price={"in": 0, "out": 1000}, yes=True)))
    assert teacher.billed_calls == ROWS


@pytest.mark.parametrize("price", [PRICE | {"in": 1, "out": 1}, {"in": 0, "out": 0}])
def test_small_and_free_runs_go_on_by_themselves(shop: Shop, prompts: str, price: object) -> None:
    work = shop(price=price)
    assert made(gen_sft(sft(prompts), work))
    assert ("estimate" in texts(work)) == (price != {"in": 0, "out": 0})


def test_an_unknown_price_is_an_error_only_under_a_limit(
    shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    for config, more in ((sft(prompts, max_usd=5), {}), (sft(prompts), {"max_usd": 5.0})):
        with pytest.raises(UsageError, match="box:teacher is not known"):
            gen_sft(config, shop(price=None, **more))
    assert teacher.requests == 0
    work = shop(price=None)
    artifact = made(gen_sft(sft(prompts, rows=3), work))
    assert artifact.manifest.teachers[0]["cost_usd"] is None
    assert texts(work).count("price of box:teacher is not known") == 1
    assert "at a price that is not known (box:teacher)" in texts(work)
    given = made(gen_sft(sft(prompts, rows=4, max_usd=5, price="in=100,out=400"), shop(price=None)))
    assert cost(given) > 0


def budgeted(stage: str, prompts: str, **settings: Any) -> tuple[Any, Any]:
    return (
        (gen_sft, sft(prompts, **settings)) if stage == "gen-sft" else (gen_prefs, prefs(prompts, **settings))
    )


@pytest.mark.parametrize("stage", ["gen-sft", "gen-prefs"])
def test_a_budget_stops_then_closes_a_part_then_the_rest_is_paid(
    stage: str, shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    run, config = budgeted(stage, prompts)
    whole = made(run(config, shop("elsewhere", yes=True)))
    needed, full = teacher.billed_calls, cost(whole)
    limit = full * (0.6 if stage == "gen-sft" else 0.75) + 0.15
    _, small = budgeted(stage, prompts, max_usd=limit, concurrency=1)
    first = shop()
    with pytest.raises(BudgetReached) as caught:
        run(small, first)
    assert "is below the likely cost" in texts(first)
    assert caught.value.exit_code == 7
    spent = teacher.billed_calls - needed
    assert 0 < spent < needed
    _, partial = budgeted(stage, prompts, max_usd=limit, accept_partial=True)
    work = shop()
    part = made(run(partial, work))
    counts = part.manifest.counts
    assert counts["partial"] is True
    assert 0 < counts["finished"] < counts["of"]
    assert counts["of"] == (2 * ROWS if stage == "gen-sft" else ROWS)
    assert "a partial artifact" in texts(work)
    assert f"{counts['finished']} of {counts['of']}" in part.manifest.headline["finished"]
    assert {r["reason"] for r in part.rejects()} == {"unpaid"}
    assert teacher.billed_calls == needed + spent
    assert cost(part) == 0
    finished = made(run(config, shop(yes=True)))
    assert (finished.digest, "partial" in finished.manifest.counts) == (whole.digest, False)
    assert teacher.billed_calls == 2 * needed
    assert cost(finished) < full
    assert [row for row in rows_of(whole) if row in rows_of(part)] == rows_of(part)
    assert run(partial, shop()).ref == str(finished.ref)


def test_more_spending_gives_another_partial_version(
    shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    full = cost(made(gen_sft(sft(prompts, rounds=0), shop("elsewhere", yes=True))))
    finished = []
    for limit in (0.3 * full + 0.03, 0.7 * full + 0.03):
        with pytest.raises(BudgetReached):
            gen_sft(sft(prompts, rounds=0, max_usd=limit, concurrency=1), shop())
        part = made(gen_sft(sft(prompts, rounds=0, accept_partial=True), shop()))
        finished.append((part.ref.version, part.manifest.counts["finished"]))
    (first, few), (second, more) = finished
    assert (first, second) == (1, 2)
    assert few < more


def test_nothing_paid_is_no_partial_artifact(shop: Shop, prompts: str, teacher: LoopbackTeacher) -> None:
    with pytest.raises(StageRejected, match="0 of 24 pairs"):
        gen_sft(sft(prompts, accept_partial=True), shop())
    assert teacher.requests == 0


def test_a_limit_of_zero_replays(shop: Shop, prompts: str, teacher: LoopbackTeacher) -> None:
    gen_sft(sft(prompts), shop(yes=True))
    billed = teacher.billed_calls
    again = made(gen_sft(sft(prompts, max_usd=0), shop(again=True)))
    assert cost(again) == 0
    with pytest.raises(BudgetReached):
        gen_sft(sft(prompts, max_usd=0, rounds=2), shop())
    assert teacher.billed_calls == billed


@pytest.mark.parametrize("stage", ["gen-sft", "gen-prefs"])
def test_a_pilot_pays_for_its_rows_and_the_run_replays_them(
    stage: str, shop: Shop, prompts: str, teacher: LoopbackTeacher
) -> None:
    run, config = budgeted(stage, prompts, pilot=4)
    work = shop(yes=True)
    result = run(config, work)
    assert (result.ref, result.artifact, work.store.names()) == (None, None, [])
    piloted = teacher.billed_calls
    forecast = result.plan["forecast"]
    assert (forecast["paid_rows"], forecast["rows"]) == (4, ROWS)
    assert "pilot: 4 of 12 rows cost" in texts(work)
    assert run(config, shop(yes=True)).plan["forecast"] == forecast
    assert teacher.billed_calls == piloted
    _, config = budgeted(stage, prompts)
    artifact = made(run(config, shop(yes=True)))
    share = sum(t["replayed"] for t in artifact.manifest.teachers)
    assert share == piloted
    total = cost(artifact) + sum(t["saved_usd"] for t in artifact.manifest.teachers)
    assert forecast["usd"]["low"] - 1e-6 <= total <= forecast["usd"]["high"] + 1e-6


def test_the_end_says_what_a_row_costs(shop: Shop, prompts: str) -> None:
    gen_sft(sft(prompts, rows=3), shop(yes=True))
    work = shop(yes=True)
    gen_sft(sft(prompts), work)
    told = texts(work)
    assert "paid now: $" in told
    assert "not paid again: 9 replies worth $" in told
    assert "per usable pair" in told


def test_two_shards_share_prompts_and_money(shop: Shop, prompts: str, tmp_path: Path) -> None:
    whole = {row.row_id for row in rows_of(made(gen_sft(sft(prompts, novelty=1.0), shop("whole", yes=True))))}
    parts = []
    for i in (1, 2):
        work = shop(yes=True)
        store = Store.open(work.store.root, ledger=tmp_path / f"ledger-{i}.sqlite")
        part = made(
            gen_sft(sft(prompts, shard=f"{i}/2", novelty=1.0), Work(store, project=work.project, yes=True))
        )
        assert part.ref.name == f"sft-data.shard-{i}-of-2"
        parts.append({row.row_id for row in rows_of(part)})
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
