"""Second opinions: which rows get one, what it costs, and that it changes nothing of the first."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.estimate import Range
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat, take_seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder
from zephyrctl.judges.audit import Audit
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project
from zephyrctl.providers.base import UNPAID, Answer, Ask, Failure
from zephyrctl.providers.site import Site
from zephyrctl.quote import read_blocks
from zephyrctl.records import Completion, FeedbackRow, Message, PromptRow, Rating, completion_id, prompt_id
from zephyrctl.stages.gen_prefs.answered import Answered
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.judgements import Judging
from zephyrctl.stages.gen_prefs.judging import JudgeRater
from zephyrctl.stages.gen_prefs.rating import Rater
from zephyrctl.stages.gen_prefs.scorers import open_scorer
from zephyrctl.stages.gen_prefs.second import SecondRater, open_second
from zephyrctl.stages.gen_prefs.tally import Tally
from zephyrctl.stages.gen_prefs.when import When, parse_when

JUDGING = Judging(42, ASPECTS, True, 0.0, 256)


@dataclass(frozen=True)
class Stub:
    label: str
    world: str = "sandbox"


FIRST = Seat(parse_model("sandbox:judge"), Stub("first"))  # type: ignore[arg-type]
OTHER = Seat(parse_model("sandbox:fair-judge"), Stub("other"))  # type: ignore[arg-type]


def row(number: int, *scores: int) -> Answered:
    """A prompt whose texts say how the first judge rates them: `overall of the n-th text`."""
    prompt = [Message(role="user", content=f"question {number}")]
    seed = Seed(f"f:{number}", "train", PromptRow(prompt_id=prompt_id(prompt), prompt=prompt))
    texts = [f"answer {i} to {number} scores {score}" for i, score in enumerate(scores)]
    kept = [
        Completion(completion_id=completion_id("m", i, t), model="m", text=t) for i, t in enumerate(texts)
    ]
    return Answered(seed, kept)


def said(text: str, shift: int = 0) -> str:
    """A judgement that gives each text the score it names, `shift` higher."""
    blocks = read_blocks(text)
    named = {k: min(10, int(v.rsplit(" ", 1)[1]) + shift) for k, v in blocks.items() if " scores " in v}
    if "ANSWER" in named:
        return f"Fine.\n\nOverall score: {named['ANSWER']}"
    kinds = "Type: None\n" if "Type:" in text else ""
    return "\n\n".join(
        f"Text {name.split()[1]}\n{kinds}Rating: {max(1, min(5, score // 2))}\nRationale: so."
        for name, score in named.items()
    )


class World:
    """Both judges behind the caller; `spoil` may replace a reply."""

    def __init__(self, spoil: Callable[[Seat, Ask], Answer | Failure | None] | None = None) -> None:
        self.spoil = spoil or (lambda who, ask: None)
        self.asks: list[tuple[str, Ask]] = []

    def __call__(self, asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer | Failure]:
        self.asks.extend((who.label, ask) for who, ask in asks)
        return [self.spoil(who, ask) or self.reply(who, ask) for who, ask in asks]

    def asked(self) -> Counter[tuple[object, ...]]:
        """How often each request was made."""
        return Counter((who, ask.messages, ask.draw, ask.purpose) for who, ask in self.asks)

    def reply(self, who: Seat, ask: Ask) -> Answer:
        shift = 1 if who.label == "other" or ask.draw else 0
        return Answer(said(ask.messages[0].content, shift), "text", "stop", "m", None, "k", False)


def rater(**wanted: Any) -> Rater:
    """The first judge and what the settings add to it, with a second judge that is not looked up."""
    from zephyrctl.stages.gen_prefs import second

    config = GenPrefsConfig(teacher="sandbox:judge", **wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second, "take_seat", lambda store, spec, site: OTHER)
        return open_second(JudgeRater(FIRST, JUDGING), config, Work(None, Recorder()), Site(Project()))  # type: ignore[arg-type]


def rate(who: Rater, world: World, *rows: Answered) -> tuple[list[list[Completion] | None], Tally]:
    tally = Tally()
    made = who.rate(rows, world, tally)
    assert tally.ratings_asked == tally.rated + tally.not_applicable + tally.unscored.total()
    return made, tally


def completions(made: Sequence[list[Completion] | None]) -> list[list[Completion]]:
    assert all(one is not None for one in made)
    return [one for one in made if one is not None]


def bare(made: Sequence[list[Completion] | None]) -> list[list[Completion]]:
    return [[c.model_copy(update={"opinions": []}) for c in one] for one in completions(made)]


# --- conditions


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("margin<1", When(1.0)),
        ("margin < 0.5", When(0.5)),
        ("conflict", When(conflict=True)),
        ("margin<2 or conflict", When(2.0, True)),
        ("conflict or margin<2", When(2.0, True)),
        ("always", When(always=True)),
    ],
)
def test_conditions_are_read_strictly(text: str, when: When) -> None:
    assert parse_when(text) == when


@pytest.mark.parametrize(
    "text",
    ["", "margin", "margin<", "margin<0", "margin<-1", "margin<nan", "margin<inf", "margin>1", "margin<=1",
     "margin<1 or", "margin<1 or margin<2", "conflict or conflict", "always or conflict", "margin<1 and conflict",
     "Margin<1", "never", "margin<1;import os"],
)  # fmt: skip
def test_what_is_no_condition_is_a_usage_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match="no condition") as error:
        parse_when(text)
    assert "margin<X or conflict" in str(error.value.hint)


def texts(*scores: tuple[float | None, float | None]) -> list[Completion]:
    """Completions with (mean of aspects, overall)."""
    return [
        Completion(
            completion_id=str(i),
            model="m",
            text=str(i),
            overall=overall,
            ratings=[Rating(aspect="honesty", value=mean)],
        )
        for i, (mean, overall) in enumerate(scores)
    ]


def test_the_margin_is_that_of_the_two_best_overall_scores_else_of_the_means() -> None:
    near = When(margin=1.0)
    assert near.reason(texts((1, 9), (5, 9), (1, 2))) == "margin"
    assert near.reason(texts((5, 9), (5, 8))) is None  # exactly 1 is not less than 1
    assert near.reason(texts((5, None), (4.5, None))) == "margin"
    assert near.reason(texts((5, None), (4, None))) is None
    assert near.reason(texts((5, 9), (5, None))) is None  # one score alone is not close to anything
    assert near.reason(texts((None, None), (None, None))) is None


def test_a_conflict_is_when_no_text_is_best_by_both() -> None:
    conflict = When(conflict=True)
    assert conflict.reason(texts((5, 3), (4, 9))) == "conflict"
    assert conflict.reason(texts((5, 9), (5, 8))) is None
    assert conflict.reason(texts((5, None), (4, None))) is None
    assert When(1.0, True).reason(texts((5, 3), (4, 9))) == "conflict"
    assert When(9.0, True).reason(texts((5, 3), (4, 9))) == "margin"
    assert When(always=True).reason(texts((None, None))) == "always"


# --- a second judge


def test_only_close_rows_are_asked_about_and_the_first_ratings_stay() -> None:
    rows = [row(1, 9, 9, 3, 2), row(2, 9, 6, 3, 2), row(3, 8, 7, 7, 2)]
    alone, counted = rate(JudgeRater(FIRST, JUDGING), World(), *rows)
    world = World()
    made, tally = rate(rater(second_judge="sandbox:fair-judge", when="margin<1"), world, *rows)
    assert bare(made) == completions(alone)
    assert tally == counted
    assert [[len(c.opinions) for c in one] for one in completions(made)] == [[1] * 4, [0] * 4, [0] * 4]
    assert Counter(who for who, _ in world.asks) == {"first": 24, "other": 8}
    for number, completion in enumerate(completions(made)[0]):
        [opinion] = completion.opinions
        assert (opinion.judge, opinion.why) == ("other", "margin")
        assert [r.aspect for r in opinion.ratings] == list(ASPECTS)
        assert opinion.overall == [10, 10, 4, 3][number]


def test_the_ledger_can_tell_the_money_apart_by_purpose() -> None:
    world = World()
    rate(rater(second_judge="sandbox:fair-judge", when="always", retest=1.0), world, row(1, 9, 9))
    purposes = Counter((who, ask.purpose) for who, ask in world.asks)
    assert purposes == {
        ("first", "aspect"): 4, ("first", "overall"): 2,
        ("other", "aspect second"): 4, ("other", "overall second"): 2,
        ("first", "aspect retest"): 4, ("first", "overall retest"): 2,
    }  # fmt: skip


def test_an_opinion_that_cannot_be_read_is_missing_with_its_reason_and_counted_nowhere_else() -> None:
    def spoil(who: Seat, ask: Ask) -> Answer | None:
        return Answer("?", "text", "stop", "m", None, "k", False) if who.label == "other" else None

    made, tally = rate(rater(second_judge="sandbox:fair-judge", when="always"), World(spoil), row(1, 9, 4))
    assert tally.unscored.total() == 0
    for completion in completions(made)[0]:
        assert [o.overall for o in completion.opinions] == [None]
        assert all(r.value is None and r.reason for o in completion.opinions for r in o.ratings)


def test_a_row_whose_opinion_is_not_paid_for_is_left_out_whole_and_counted_nowhere() -> None:
    def spoil(who: Seat, ask: Ask) -> Failure | None:
        lacking = who.label == "other" and "question 2" in ask.messages[0].content
        return Failure(UNPAID, "not in the ledger", "k") if lacking else None

    who = rater(second_judge="sandbox:fair-judge", when="margin<1")
    rows = [row(1, 9, 9), row(2, 9, 9), row(3, 9, 2)]
    world = World(spoil)
    made, tally = rate(who, world, *rows)
    assert [one is None for one in made] == [False, True, False]
    kept, counted = rate(who, World(), rows[0], rows[2])
    assert tally == counted
    assert [one for one in made if one is not None] == kept
    assert max(world.asked().values()) == 1  # nothing is asked twice to get the counts right


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(2, 9), min_size=2, max_size=4), min_size=1, max_size=5))
def test_a_row_gets_the_same_opinions_whatever_else_is_in_its_chunk(scores: list[list[int]]) -> None:
    who = rater(second_judge="sandbox:fair-judge", when="margin<2 or conflict", retest=0.5)
    rows = [row(i, *one) for i, one in enumerate(scores)]
    together, whole = rate(who, World(), *rows)
    total, alone = Tally(), []
    for one in rows:
        made, tally = rate(who, World(), one)
        alone += made
        total.add(tally)
    assert together == alone
    assert whole == total


# --- the same judge again


def test_a_retest_asks_the_first_judge_with_another_draw_for_its_share_of_prompts() -> None:
    world = World()
    rows = [row(i, 9, 4) for i in range(300)]
    made, _ = rate(rater(retest=0.2), world, *rows)
    again = {a.item.row.prompt_id for a, c in zip(rows, completions(made), strict=True) if c[0].opinions}
    assert 35 <= len(again) <= 85
    assert {(o.judge, o.why) for one in completions(made) for c in one for o in c.opinions} == {
        ("first", "retest")
    }
    assert {ask.draw for _, ask in world.asks if "retest" in ask.purpose} == {1}
    more, _ = rate(rater(retest=0.4), World(), *rows)
    larger = {a.item.row.prompt_id for a, c in zip(rows, completions(more), strict=True) if c[0].opinions}
    assert again < larger  # a larger share contains the smaller one


def test_retest_requests_are_the_first_ones_in_the_order_shown_before() -> None:
    world = World()
    rate(rater(retest=1.0), world, row(1, 9, 4, 5, 6))
    first = [ask.messages for _, ask in world.asks if ask.draw == 0]
    assert first == [ask.messages for _, ask in world.asks if ask.draw == 1]


# --- what is refused, what it costs, what it enters


def test_what_cannot_be_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, site = Work(Store.open(tmp_path / "artifacts"), Recorder()), Site(Project())
    judge = JudgeRater(take_seat(work.store, parse_model("sandbox:judge"), site), JUDGING)

    def config(**wanted: Any) -> GenPrefsConfig:
        return GenPrefsConfig(teacher="sandbox:judge", **wanted)

    assert open_second(judge, config(), work, site) is judge
    with pytest.raises(UsageError, match="and there is none"):
        open_second(judge, config(when="conflict"), work, site)
    with pytest.raises(UsageError, match=r"is the first one, sandbox:judge") as error:
        open_second(judge, config(second_judge="sandbox:judge"), work, site)
    assert "retest" in str(error.value.hint)
    with pytest.raises(UsageError, match="cannot be in conflict"):
        open_second(
            judge,
            config(second_judge="sandbox:fair-judge", when="conflict", judge_mode="aspects"),
            work,
            site,
        )
    with pytest.raises(UsageError, match="no condition"):
        open_second(judge, config(second_judge="sandbox:fair-judge", when="often"), work, site)
    (tmp_path / "mine.py").write_text("def right(p, c):\n    return 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    function = open_scorer("./mine.py:right", work)
    with pytest.raises(UsageError, match=r"mine\.py:right is no language model"):
        open_second(function, config(second_judge="sandbox:fair-judge"), work, site)


def test_the_estimate_shows_the_expected_share_of_further_calls_and_the_most(tmp_path: Path) -> None:
    work, site = Work(Store.open(tmp_path / "artifacts"), Recorder()), Site(Project())
    judge = JudgeRater(take_seat(work.store, parse_model("sandbox:judge"), site), JUDGING)
    config = GenPrefsConfig(teacher="sandbox:judge", second_judge="sandbox:fair-judge", retest=0.1)
    who = open_second(judge, config, work, site)
    assert isinstance(who, SecondRater)
    sketch = Sketch()
    who.draw(sketch, 100, Range(1e3, 1e3, 1e3), Range(1e4, 1e4, 1e4), 4)
    parts = {(part.who, part.purpose): part for part in sketch.parts}
    first, close, again = (
        parts["sandbox:judge", "aspect"],
        parts["sandbox:fair-judge", "aspect second"],
        parts["sandbox:judge", "aspect retest"],
    )
    assert (first.calls, close.calls, again.calls) == (400, 120, 40)
    assert close.most == first.most == 400
    # 10 of 100 prompts are expected; 35 lie six standard deviations above that
    assert again.most == 140
    assert close.prompt == first.prompt
    # another teacher would be retested itself, so a ladder replaces both its parts
    assert (close.role, again.role) == ("second judge", first.role)
    assert [p.label for p in who.providers()] == ["sandbox:judge", "sandbox:fair-judge", "sandbox:judge"]
    assert (who.label, who.world) == ("sandbox:judge", "sandbox")
    who.close()


def test_the_audit_reports_how_far_opinions_agree() -> None:
    who = rater(second_judge="sandbox:fair-judge", when="margin<3", retest=1.0)
    rows = [row(1, 9, 7, 2), row(2, 6, 6, 2), row(3, 9, 3)]
    audit = Audit("sandbox:judge")
    for answered, made in zip(rows, completions(rate(who, World(), *rows)[0]), strict=True):
        prompt = answered.item.row
        audit.add(
            FeedbackRow(
                prompt_id=prompt.prompt_id, prompt=prompt.prompt, completions=made, judge="sandbox:judge"
            )
        )
    report = audit.report()
    found = report.as_dict()["agreement"]
    assert (found["other"]["rows"], found["other"]["why"]) == (2, {"margin": 2})
    assert (found["retest"]["rows"], found["retest"]["why"]) == (3, {"retest": 3})
    assert found["other"]["same_best"] == 1.0
    assert found["other"]["overall"]["mean_distance"] == 1.0
    assert found["other"]["overall"]["within_one"] == 1.0
    assert any(re.search(r"asked again about 3 prompts", s) for s in report.sentences())
    assert math.isclose(found["retest"]["kendall_tau_b"], 1.0)
