"""What a step is about to do: said before the first call, and put into the form in which it is estimated and asked."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.step import Step, Work
from zephyrctl.asking.calling import Asker
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.estimate import Fewer, told
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch, estimated, seen_before
from zephyrctl.events import Note, Warning_
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Ask, Failure
from zephyrctl.stages.gen_prefs.answered import Outcome
from zephyrctl.stages.gen_prefs.calls import draw, prompt_tokens
from zephyrctl.stages.gen_prefs.casting import Cast, judging
from zephyrctl.stages.gen_prefs.completing import Pool
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.intake import Prompts
from zephyrctl.stages.gen_prefs.judging import JudgeRater
from zephyrctl.stages.gen_prefs.principles import has_system
from zephyrctl.stages.gen_prefs.rating import rate_chunk
from zephyrctl.stages.gen_prefs.tally import Tally

Rated = tuple[list[Outcome], Tally]
"""What becomes of a chunk of prompts, and the counts of its calls and ratings."""

MODES = ("both", "aspects", "overall")
"""What a judge can be asked for; the first is the default."""


def say(work: Work, cast: Cast, prompts: Prompts) -> None:
    """Tells which prompts go to whom, and what about them may surprise."""
    config = cast.config
    answers = cast.answerer.named if config.completions else f"pool: {cast.answerer.named}"
    work.emit(
        Note(f"prompts: {prompts.taken} from {cast.intake.named}; {answers}; judge: {cast.rater.label}")
    )
    if prompts.left_out:
        work.emit(
            Note(
                f"{len(prompts.left_out)} of them are left out before anything is asked ({_reasons(prompts)})"
            )
        )
    longer = sum(bool(seed.row.follow_ups) for seed in prompts.fresh)
    if longer:
        work.emit(Note(f"{longer} prompts have follow-up turns; completions answer the first turn only"))
    own = sum(has_system(seed.row) for seed in prompts.fresh)
    if own and config.principles != "none" and not config.completions:
        work.emit(Note(f"{own} prompts have a system message of their own: no principle is added to them"))
    if isinstance(cast.answerer, Pool):
        for name in cast.answerer.repeated_greedily():
            work.emit(
                Warning_(f"{name} answers more than once at temperature 0: it says the same thing each time")
            )


def document(cast: Cast, prompts: Prompts) -> dict[str, object]:
    """What `say` tells, for a document."""
    return {
        "prompts": {
            "from": cast.intake.named,
            "asked": len(prompts.fresh),
            "left_out": len(prompts.left_out),
        },
        "pool": list(cast.config.pool),
        "judge": cast.rater.label,
    }


def errand_of(
    cast: Cast, work: Work, step: Step, ledger: Ledger, fresh: Sequence[Seed]
) -> Errand[Seed, Rated]:
    """The prompts to ask, and how."""
    config, answerer, rater = cast.config, cast.answerer, cast.rater

    def through(chunk: Sequence[Seed], asker: Asker) -> Rated:
        def ask(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
            return asker([(seat.provider, one) for seat, one in asks], task)

        tally = Tally()
        return rate_chunk(chunk, answerer, rater, ask, tally), tally

    fewer = (
        Fewer("the overall score alone", "--judge-mode overall", frozenset({"aspect"})),
        Fewer("the aspects alone", "--judge-mode aspects", frozenset({"overall"})),
    )
    both = cast.teacher is not None and bool(config.aspects) and config.judge_mode == "both"
    return Errand(
        config=config,
        work=work,
        step=step,
        ledger=ledger,
        rows=fresh,
        providers=cast.providers(),
        draw=lambda sketch, rows: draw(sketch, rows, answerer, rater),
        through=through,
        teacher=cast.teacher,
        role="judge",
        unit="prompts",
        fewer=fewer if both else (),
        training=Training(
            "dpo", rows=lambda prompts: prompts * (1 - config.test_fraction), tokens=lambda estimate: 0.0
        ),
    )


def say_modes(work: Work, cast: Cast, ledger: Ledger, fresh: Sequence[Seed]) -> None:
    """Tells what judging costs in each mode, where it costs anything: which one is taken, which is the default."""
    config, teacher = cast.config, cast.teacher
    if teacher is None or not config.aspects or config.accept_partial or _free(teacher):
        return
    rows = fresh[: config.pilot]
    asked, texts, most = prompt_tokens(rows), cast.answerer.draw(Sketch(), rows), cast.answerer.most
    seen = seen_before(ledger, config.stage, [teacher.provider])
    prices = []
    for mode in MODES:
        judge = JudgeRater(teacher, judging(config.model_copy(update={"judge_mode": mode})))

        def sketched(sketch: Sketch, judge: JudgeRater = judge) -> None:
            judge.draw(sketch, len(rows), asked, texts, most)

        estimate = estimated(sketched, seen, batch=config.mode == "batch")
        price = f"{estimate.calls:,} calls" if estimate.unpriced else told(estimate.cost)
        marks = [word for word, holds in _marks(mode, config) if holds]
        prices.append(f"{mode}{' (' + ', '.join(marks) + ')' if marks else ''} {price}")
    work.emit(Note(f"what judging costs, by --judge-mode: {'; '.join(prices)}"))


def _free(seat: Seat) -> bool:
    return seat.provider.price is not None and seat.provider.price.worst(1, 1) == 0


def _marks(mode: str, config: GenPrefsConfig) -> tuple[tuple[str, bool], ...]:
    return (("default", mode == MODES[0]), ("this plan", mode == config.judge_mode))


def _reasons(prompts: Prompts) -> str:
    found: dict[str, int] = {}
    for one in prompts.left_out:
        reason = str(one.row["reason"])
        found[reason] = found.get(reason, 0) + 1
    return ", ".join(f"{n} {reason}" for reason, n in sorted(found.items()))
