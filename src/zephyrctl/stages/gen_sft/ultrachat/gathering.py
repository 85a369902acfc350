"""Which dialogues become rows, decided in the order of their places, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zephyrctl.asking.ending import partial_counts
from zephyrctl.config import canonical, digest_of
from zephyrctl.curation.base import Dropped
from zephyrctl.events import Emit, Table
from zephyrctl.providers.base import UNPAID
from zephyrctl.records import SftRow, Split, prompt_id, split_of
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.ultrachat.lists import plain_form
from zephyrctl.stages.gen_sft.ultrachat.talking import DUPLICATE, Talk


@dataclass(frozen=True)
class Reject:
    """A dialogue that could not be held or kept, and why."""

    talk: Talk
    reason: str
    detail: str

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        said = [message.model_dump() for message in self.talk.said]
        row = canonical({"topic": self.talk.slot.topic, "subtopic": self.talk.subtopic, "messages": said})
        return {"where": self.talk.slot.where, "reason": self.reason, "detail": self.detail, "row": row}


class Gathering:
    """Takes dialogues in the order of their places; counts everything so that the sums add up.

    For every run: dialogues = kept + dropped (by reason), and rows = kept + further parts of dialogues that a filter
    cut up. In a run that only replays the ledger, those dropped as unpaid are not finished.
    """

    def __init__(self, model: str, *, test_fraction: float, screen: Screen) -> None:
        self.taken = 0
        self.kept = 0
        self.further = 0
        self.rejects: list[Reject] = []
        self.rounds: Counter[int] = Counter()
        self.ended: Counter[str] = Counter()
        self._model = model
        self._test_fraction = test_fraction
        self._screen = screen
        self._openings: set[str] = set()
        self._topics: set[str] = set()

    def take(self, talk: Talk) -> tuple[Split, list[SftRow]]:
        """The rows that a dialogue gives, none where it is dropped, and their split."""
        self.taken += 1
        opening = plain_form(talk.said[0].content) if talk.said else None
        if opening is not None and opening in self._openings:
            return self._drop(talk, DUPLICATE, "an earlier dialogue opens with the same")
        if opening is not None:
            self._openings.add(opening)
        if talk.trouble is not None:
            return self._drop(talk, *talk.trouble)
        row = self._row(talk)
        found = self._screen.row(row)
        if isinstance(found, Dropped):
            return self._drop(talk, found.reason, found.detail)
        self.kept += 1
        self.further += len(found) - 1
        self.rounds[talk.rounds] += 1
        self._topics.add(talk.slot.topic)
        if talk.ended:
            self.ended[talk.ended] += 1
        return split_of(row.prompt_id, self._test_fraction), found

    def dropped(self) -> Counter[str]:
        """How many dialogues were dropped, by reason."""
        return Counter(reject.reason for reject in self.rejects)

    @property
    def finished(self) -> int:
        """How many dialogues are settled."""
        return self.taken - self.dropped()[UNPAID]

    def counts(self) -> dict[str, Any]:
        """For the manifest: dialogues = kept + dropped; rows = kept + further parts."""
        counts: dict[str, Any] = {
            "dialogues": self.taken,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped().items())),
            "bad_rows": 0,
        }
        if self.further:
            counts["further_parts"] = self.further
        return counts | partial_counts(self.finished, self.taken)

    def reject_rows(self) -> Iterator[Mapping[str, Any]]:
        """All rejects as the store keeps them."""
        return (reject.as_row() for reject in self.rejects)

    def tell(self, emit: Emit) -> dict[str, Any]:
        """Shows how long the kept dialogues are; the figures for the manifest."""
        lengths = sorted(self.rounds.items())
        rows = tuple((str(rounds), f"{n:,}") for rounds, n in lengths)
        emit(Table("dialogues by rounds of user and assistant", ("rounds", "dialogues"), rows))
        return {
            "topics": len(self._topics),
            "rounds": {str(rounds): n for rounds, n in lengths},
            "ended_by_the_user": dict(sorted(self.ended.items())),
        }

    def _drop(self, talk: Talk, reason: str, detail: str) -> tuple[Split, list[SftRow]]:
        self.rejects.append(Reject(talk, reason, detail))
        return "train", []

    def _row(self, talk: Talk) -> SftRow:
        said = [[m.role, m.content] for m in talk.said]
        opening = prompt_id(talk.said[:1])
        return SftRow(
            row_id=digest_of({"parent": None, "messages": said}).removeprefix("sha256:"),
            prompt_id=opening,
            messages=talk.said,
            seed_id=opening,
            model=self._model,
            source=f"ultrachat/{talk.slot.topic}",
        )
