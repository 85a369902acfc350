"""Pairs, best answers and dropped prompts as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyrctl.artifacts.writer import Staging
from zephyrctl.config import canonical, digest_of
from zephyrctl.records import FeedbackRow, Message, PreferenceRow, SftRow, Split, split_of
from zephyrctl.stages.binarize.candidates import Asked, asked_of
from zephyrctl.stages.binarize.select import Outcome, Pairing


@dataclass
class Rows:
    """Some checked rows of feedback that is no artifact of ours; what `columns.Batch` is for one that is."""

    rows: Sequence[tuple[str, Split, FeedbackRow]]
    asked: list[Asked] = field(init=False)
    _outcomes: list[tuple[int, Outcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.asked = [asked_of(row) for _, _, row in self.rows]

    @property
    def aspects(self) -> set[str]:
        """What was rated in any row."""
        return {rating.aspect for _, _, row in self.rows for c in row.completions for rating in c.ratings}

    def where(self, number: int) -> str:
        """Where a row stands."""
        return self.rows[number][0]

    def note(self, number: int, outcome: Outcome) -> None:
        """Takes what became of a row, if it gave a pair."""
        if outcome.best is not None:
            self._outcomes.append((number, outcome))

    def write(self, pairs: Staging, best: Staging) -> None:
        """Writes the pairs and the best answers that were noted."""
        for number, outcome in self._outcomes:
            _, split, row = self.rows[number]
            pairs.write_rows(split, [preference(row, pairing) for pairing in outcome.pairs])
            if outcome.best is not None:
                best.write_rows(split, [best_answer(row, outcome.best)])


def side_of(split: str | None, identity: str, test_fraction: float) -> Split:
    """The split of a prompt: the stored one where there is one, else by hash."""
    if split is None:
        return split_of(identity, test_fraction)
    return "test" if split == "test" else "train"


def preference(row: FeedbackRow, pairing: Pairing) -> PreferenceRow:
    """One pair of a prompt's completions."""
    chosen, rejected = row.completions[pairing.chosen], row.completions[pairing.rejected]
    return PreferenceRow(
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=[Message(role="assistant", content=chosen.text)],
        rejected=[Message(role="assistant", content=rejected.text)],
        score_chosen=pairing.high,
        score_rejected=pairing.low,
        chosen_model=chosen.model,
        rejected_model=rejected.model,
        judge=row.judge,
        tie=pairing.tie,
        source=row.source,
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
    )


def best_answer(row: FeedbackRow, best: int) -> SftRow:
    """A prompt with its best completion as a dialogue to imitate: what the paper's dSFT-2 is trained on."""
    completion = row.completions[best]
    messages = [*row.prompt, Message(role="assistant", content=completion.text)]
    return SftRow(
        row_id=best_id([(m.role, m.content) for m in messages]),
        prompt_id=row.prompt_id,
        messages=messages,
        seed_id=row.prompt_id,
        model=completion.model,
        source=row.source,
    )


def best_id(messages: Sequence[tuple[str, str]]) -> str:
    """The row_id of a best answer, from the roles and texts of its dialogue."""
    return digest_of({"parent": None, "messages": [list(m) for m in messages]}).removeprefix("sha256:")


def reject(where: str, asked: Asked, outcome: Outcome) -> dict[str, str]:
    """A prompt without a pair, as the rejects keep it."""
    kept = {
        "prompt_id": asked.prompt_id,
        "completions": [c.identity for c in asked.candidates],
        "overall": [
            None if c.overall is None or not math.isfinite(c.overall) else c.overall for c in asked.candidates
        ],
    }
    return {"where": where, "reason": str(outcome.reason), "detail": outcome.detail, "row": canonical(kept)}
