"""`binarize`: from rated completions to preference pairs, with the best answers beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.adopt import Source, open_source
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.seats import joint_world
from zephyrctl.config import canonical, digest_of
from zephyrctl.errors import IntegrityError, RefNotFound, StageRejected, UsageError
from zephyrctl.events import Note, Table
from zephyrctl.records import FeedbackRow, PreferenceRow, SftRow, Split, split_of
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.select import Outcome, Policy, select

NAME = "prefs"
FEEDBACK = "feedback"


@dataclass
class Funnel:
    """Counts from prompts to pairs: prompts = pairs + dropped (by reason)."""

    prompts: int = 0
    completions: int = 0
    unscored: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    ties: int = 0
    shared_best: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    wins: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)
    aspects: set[str] = field(default_factory=set)

    def add(self, row: FeedbackRow, outcome: Outcome) -> None:
        """Counts one prompt."""
        self.prompts += 1
        self.completions += len(row.completions)
        self.unscored += outcome.unscored
        self.missing.update(outcome.missing)
        self.shared_best += outcome.shared_best
        self.aspects.update(rating.aspect for c in row.completions for rating in c.ratings)
        if outcome.pair is None:
            self.dropped[str(outcome.reason)] += 1
            return
        self.pairs += 1
        self.ties += outcome.pair.tie
        self.wins[str(outcome.pair.chosen_model)] += 1
        self.losses[str(outcome.pair.rejected_model)] += 1

    def as_counts(self) -> dict[str, Any]:
        """The counts for the manifest."""
        return {
            "prompts": self.prompts,
            "completions": self.completions,
            "completions_unscored": self.unscored,
            "ratings_missing": dict(sorted(self.missing.items())),
            "pairs": self.pairs,
            "pairs_tied": self.ties,
            "prompts_with_shared_best": self.shared_best,
            "dropped": dict(sorted(self.dropped.items())),
        }

    def tables(self, policy: Policy) -> list[Table]:
        """What people see: the funnel, and how often each model was chosen and rejected."""
        steps = [
            ("prompts", str(self.prompts)),
            ("completions", str(self.completions)),
            (f"completions without a score ({policy.score})", str(self.unscored)),
            *((f"ratings missing: {why}", str(n)) for why, n in sorted(self.missing.items())),
            *((f"prompts dropped: {why}", str(n)) for why, n in sorted(self.dropped.items())),
            ("pairs", str(self.pairs)),
            ("pairs of equal scores", str(self.ties)),
        ]
        models = sorted(self.wins.keys() | self.losses.keys())
        by_model = tuple((m, str(self.wins[m]), str(self.losses[m])) for m in models)
        return [
            Table("from feedback to pairs", ("step", "count"), tuple(steps)),
            Table("by model", ("model", "chosen", "rejected"), by_model),
        ]


def run(config: BinarizeConfig, work: Work) -> StepResult:
    """The artifact `prefs` (one pair for each prompt), and `prefs-best` with the chosen answers of those
    pairs as dialogues.

    Splits are those of the feedback. Raises RefNotFound, WrongKind, IntegrityError, UsageError for an aspect
    that nobody rated, and StageRejected when more than `max_dropped` of the prompts end without a pair.
    """
    source = _source(config, work)
    name = config.out or NAME
    world = joint_world([source.world])
    step = Step(work, config, name=name, kind="prefs", inputs=[source.input("feedback")], world=world)
    done = step.done()
    if done is not None:
        return done
    policy = config.policy()
    work.emit(
        Note(f"pairs by {policy.score}: the best against a {policy.rejected} lower one; ties: {config.ties}")
    )
    if work.dry_run:
        _look(config, work, source, policy)
        return StepResult(None, None, False, {})
    with step.open() as staging:
        with staging.side(f"{name}-best", "sft") as best:
            funnel = _pair_all(config, source, policy, staging, best)
            _judge_outcome(config, policy, funnel)
            best.counts["pairs"] = funnel.pairs
        staging.write_rejects(source.rejects)
        staging.counts.update(funnel.as_counts(), bad_rows=len(source.rejects))
        for table in funnel.tables(policy):
            work.emit(table)
        return step.result(staging.commit())


def _source(config: BinarizeConfig, work: Work) -> Source:
    if config.feedback is not None:
        return open_source(work.store, config.feedback, "feedback", on_bad_row=config.on_bad_row)
    newest = work.store.newest(FEEDBACK, kind="feedback")
    if newest is None:
        raise RefNotFound(
            f"there is no {FEEDBACK} in {work.store.root} to make pairs from",
            hint="zephyrctl gen-prefs --teacher … makes it; or --feedback REF or FILE",
        )
    work.emit(Note(f"feedback: {newest.ref}, the newest (--feedback names others)"))
    return open_source(work.store, str(newest.ref), "feedback", on_bad_row=config.on_bad_row)


def _pair_all(
    config: BinarizeConfig, source: Source, policy: Policy, staging: Staging, best: Staging
) -> Funnel:
    """Writes pairs, best answers and rejects row by row, so that memory does not grow with the feedback."""
    funnel = Funnel()
    for where, split, raw in source.rows():
        row = _feedback(where, raw)
        outcome = select(row, policy)
        funnel.add(row, outcome)
        if outcome.pair is None:
            staging.write_rejects([_reject(where, row, outcome)])
            continue
        side = _split(config, row, split)
        staging.write_rows(side, [outcome.pair])
        best.write_rows(side, [best_answer(outcome.pair)])
    return funnel


def _look(config: BinarizeConfig, work: Work, source: Source, policy: Policy) -> None:
    """The funnel alone, for a dry run."""
    funnel = Funnel()
    for where, _, raw in source.rows():
        row = _feedback(where, raw)
        funnel.add(row, select(row, policy))
    for table in funnel.tables(policy):
        work.emit(table)
    _judge_outcome(config, policy, funnel)


def _feedback(where: str, row: object) -> FeedbackRow:
    if not isinstance(row, FeedbackRow):
        raise IntegrityError(f"{where}: a {type(row).__name__} where feedback was expected")
    return row


def _split(config: BinarizeConfig, row: FeedbackRow, split: str | None) -> Split:
    if split is None:
        return split_of(row.prompt_id, config.test_fraction)
    return "test" if split == "test" else "train"


def best_answer(pair: PreferenceRow) -> SftRow:
    """The chosen side of a pair as a dialogue to imitate: what the paper's dSFT-2 is trained on."""
    messages = [*pair.prompt, *pair.chosen]
    said = [[m.role, m.content] for m in messages]
    return SftRow(
        row_id=digest_of({"parent": None, "messages": said}).removeprefix("sha256:"),
        prompt_id=pair.prompt_id,
        messages=messages,
        seed_id=pair.prompt_id,
        model=pair.chosen_model,
        source=pair.source,
    )


def _reject(where: str, row: FeedbackRow, outcome: Outcome) -> Mapping[str, str]:
    kept = {
        "prompt_id": row.prompt_id,
        "completions": [c.completion_id for c in row.completions],
        "overall": [c.overall for c in row.completions],
    }
    return {"where": where, "reason": str(outcome.reason), "detail": outcome.detail, "row": canonical(kept)}


def _judge_outcome(config: BinarizeConfig, policy: Policy, funnel: Funnel) -> None:
    wanted = policy.score.removeprefix("aspect:")
    if policy.score.startswith("aspect:") and wanted not in funnel.aspects:
        raise UsageError(
            f"nobody rated the aspect '{wanted}' in this feedback",
            hint="rated are: " + (", ".join(sorted(funnel.aspects)) or "none; --score overall"),
        )
    told = ", ".join(f"{n} {why}" for why, n in sorted(funnel.dropped.items())) or "none"
    rate = funnel.dropped.total() / max(1, funnel.prompts)
    if funnel.pairs == 0:
        raise StageRejected(
            f"binarize: no pair could be made of {funnel.prompts} prompts ({told})",
            hint="another --score or --ties may help; artifacts show feedback tells what the judge left out",
        )
    if rate > config.max_dropped:
        raise StageRejected(
            f"binarize: {rate:.0%} of the prompts end without a pair, {config.max_dropped:.0%} may ({told})",
            hint=f"another --ties may help; or accept it: --set max_dropped={min(1.0, rate + 0.05):.2f}",
        )
