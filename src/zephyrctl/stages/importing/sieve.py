"""Which rows of a source are kept, and as what: filters over dialogues and prompts, then the evaluation suites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.adopt import Source
from zephyrctl.artifacts.shapes_messages import dialogue_id, opening_of
from zephyrctl.benchmarks.decontamination import REASON as CONTAMINATED
from zephyrctl.benchmarks.decontamination import Decontaminator
from zephyrctl.config import canonical
from zephyrctl.curation.base import Dropped
from zephyrctl.curation.pipeline import Pipeline
from zephyrctl.records import FeedbackRow, Message, PreferenceRow, PromptRow, Record, SftRow, prompt_id

FILTERED = ("prompts", "sft", "prefs", "feedback")
"""The kinds whose rows can be filtered and compared with evaluation suites."""

Kept = list[Record]
Reject = Callable[[Iterable[Mapping[str, Any]]], object]


@dataclass
class Sieve:
    """Filters, then suites; `dropped` counts what they took out, by reason. Rows are shown in their order, by one
    thread.

    Of an sft row the whole dialogue is filtered, of any other row the prompt. What users and system say, as it is
    after the filters, is compared with the suites.
    """

    pipeline: Pipeline
    suites: Decontaminator
    drop_contaminated: bool
    dropped: Counter[str] = field(default_factory=Counter)

    def learn(self, source: Source) -> None:
        """Shows all rows to the filters that learn, where there are any."""
        if self.pipeline.learns:
            self.pipeline.learn(said_in(row) for _, _, row in source.rows())

    def kept(self, source: Source, reject: Reject) -> Iterator[tuple[str | None, Kept]]:
        """`(split, rows)` for each row of the source that is kept: itself, changed, or the parts it was cut into.

        Those that are not go to `reject`, as the store keeps them.
        """
        for where, split, row in source.rows():
            rows = self._one(row)
            if not isinstance(rows, Dropped):
                yield split, rows
                continue
            self.dropped[rows.reason] += 1
            body = canonical(row.model_dump(mode="json"))
            reject([{"where": where, "reason": rows.reason, "detail": rows.detail, "row": body}])

    def _one(self, row: Record) -> Kept | Dropped:
        found = self.pipeline.apply(said_in(row))
        rows = found if isinstance(found, Dropped) else changed(row, found)
        if isinstance(rows, Dropped):
            return rows
        for one in rows:
            hit = self.suites.hit(_asked(one), drop=self.drop_contaminated)
            if hit is not None and self.drop_contaminated:
                return Dropped(CONTAMINATED, str(hit))
        return rows


def said_in(row: Record) -> list[Message]:
    """What filters look at: the dialogue of an sft row, the prompt of any other."""
    if isinstance(row, SftRow):
        return row.messages
    assert isinstance(row, PromptRow | PreferenceRow | FeedbackRow)
    return row.prompt


def changed(row: Record, parts: list[list[Message]]) -> Kept | Dropped:
    """The row with what the filters made of it, with new identities where the words are new.

    A dialogue may come in parts, each a row of its own; a prompt in parts, or without a last question, is dropped.
    `parent` and `seed_id` keep naming what the row was made from.
    """
    if parts == [said_in(row)]:
        return [row]
    if isinstance(row, SftRow):
        return [_dialogue(row, part) for part in parts]
    if len(parts) != 1 or not parts[0] or parts[0][-1].role != "user":
        return Dropped("cut_apart", "a prompt cannot be read in parts")
    return [row.model_copy(update={"prompt": parts[0], "prompt_id": prompt_id(parts[0])})]


def _dialogue(row: SftRow, part: list[Message]) -> SftRow:
    identity = prompt_id(opening_of(part))
    return row.model_copy(
        update={"messages": part, "row_id": dialogue_id(part, row.parent), "prompt_id": identity}
    )


def _asked(row: Record) -> list[Message]:
    said = said_in(row)
    if isinstance(row, PromptRow):
        return [*said, *(Message(role="user", content=text) for text in row.follow_ups)]
    return said
