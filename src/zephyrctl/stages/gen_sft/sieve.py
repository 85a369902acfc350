"""Which rounds become rows, decided in the order of seeds.

What a chain is depends on its seed alone; whether its rounds are kept depends on the chains before it: an instruction
that was asked before, one too near to another machine-made one, a dialogue that a filter saw before. So a run with
more seeds contains the run with fewer, and the merge of a cut-up step, which shows the sieve all chains in the same
order, comes to the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zephyrctl.asking.ending import partial_counts
from zephyrctl.asking.prompts import Seed
from zephyrctl.config import digest_of
from zephyrctl.curation.base import Dropped
from zephyrctl.curation.novelty import Pool
from zephyrctl.providers.base import UNPAID
from zephyrctl.records import SftRow, prompt_id
from zephyrctl.stages.gen_sft.chains import NOT_NOVEL, Chain, Dialogue, Reject, Round, near_words
from zephyrctl.stages.gen_sft.rounds import RoundTally
from zephyrctl.stages.gen_sft.screen import Screen


class Sieve:
    """Decides, in the order of seeds, which rounds become rows; counts everything so that the sums add up.

    For every run: seeds x (rounds + 1) = kept + dropped (by reason) + not reached, all of them pairs, and
    rows = kept + further parts of pairs that a filter cut up. A seed that was turned away is one dropped pair, its
    refinements were not reached. In a run that only replays the ledger, `unfinished` of them are neither made nor
    settled.
    """

    def __init__(self, rounds: int, model: str, *, novelty: float, screen: Screen) -> None:
        self.kept = 0
        self.seeds = 0
        self.further = 0
        self.unfinished = 0
        self.rejects: list[Reject] = []
        self.tallies = [RoundTally(number) for number in range(rounds + 1)]
        self._turned_away: list[Mapping[str, Any]] = []
        self._rounds = rounds
        self._model = model
        self._novelty = novelty
        self._screen = screen
        self._seen: set[str] = set()
        self._made = Pool()
        self._instructions: list[str] = []

    def turn_away(self, rejects: Sequence[Mapping[str, Any]]) -> None:
        """Takes note of seeds that were left out before anything was asked, as rejects of the store."""
        self.seeds += len(rejects)
        self._turned_away.extend(rejects)

    def dropped(self) -> Counter[str]:
        """How many pairs were dropped, by reason."""
        return Counter(row["reason"] for row in self._turned_away) + Counter(r.reason for r in self.rejects)

    def reject_rows(self) -> Iterator[Mapping[str, Any]]:
        """All rejects as the store keeps them: seeds turned away first."""
        yield from self._turned_away
        yield from (reject.as_row() for reject in self.rejects)

    def not_reached(self) -> int:
        """How many pairs were never asked for because their chain had ended."""
        return self.possible - self.kept - len(self.rejects) - len(self._turned_away)

    def counts(self, bad_rows: int) -> dict[str, Any]:
        """For the manifest: seeds x (rounds + 1) = kept + dropped + not reached; rows = kept + further parts."""
        counts: dict[str, Any] = {
            "seeds": self.seeds,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped().items())),
            "not_reached": self.not_reached(),
            "bad_rows": bad_rows,
        }
        if self.further:
            counts["further_parts"] = self.further
        return counts | partial_counts(self.possible - self.unfinished, self.possible)

    @property
    def possible(self) -> int:
        """How many pairs the seeds can make."""
        return self.seeds * (self._rounds + 1)

    def rows(self, chain: Chain) -> Iterator[SftRow]:
        """The rows of one chain.

        An instruction that an earlier chain asked, or that is too near to one made before, is dropped and ends this
        chain. A dialogue that the screen drops does not: what was refined from it stands by itself, and names it
        as its parent.
        """
        self.seeds += 1
        parent: str | None = None
        for number, done in enumerate(chain.rounds):
            again = self._again(number, done)
            if again is not None:
                self._reject(Reject(chain.seed, number, *again, done.prompt))
                return
            row = self._row(chain.seed, number, done, parent)
            parent = row.row_id
            found = self._screen.row(row, made=number > 0)
            if isinstance(found, Dropped):
                said: Dialogue = tuple(done.said)
                self._reject(Reject(chain.seed, number, found.reason, found.detail, said))
                continue
            self.kept += 1
            self.further += len(found) - 1
            self.tallies[number].keep(done.instruction, done.said[len(done.prompt)].content)
            yield from found
        if chain.end is not None:
            self._reject(chain.end)
            if chain.end.reason == UNPAID:
                self.unfinished += self._rounds + 1 - chain.end.round

    def _again(self, number: int, done: Round) -> tuple[str, str] | None:
        """Why what a round asks is not new, as (reason, detail). Seeds are compared for equality only, and never
        stand in the way of what is made."""
        if done.identity in self._seen:
            return "duplicate", "an earlier row asks the same"
        if number > 0:
            near = self._made.most_similar(done.instruction, self._novelty)
            if near is not None:
                return NOT_NOVEL, near_words(near.score, self._instructions[near.index])
            self._made.add(done.instruction)
            self._instructions.append(done.instruction)
        self._seen.add(done.identity)
        return None

    def _reject(self, reject: Reject) -> None:
        self.rejects.append(reject)
        self.tallies[reject.round].dropped[reject.reason] += 1

    def _row(self, seed: Seed, number: int, done: Round, parent: str | None) -> SftRow:
        said = [[m.role, m.content] for m in done.said]
        return SftRow(
            row_id=digest_of({"parent": parent, "messages": said}).removeprefix("sha256:"),
            prompt_id=prompt_id(done.prompt) if number else seed.row.prompt_id,
            messages=done.said,
            parent=parent,
            seed_id=seed.row.prompt_id,
            round=number,
            model=self._model,
            source=seed.row.source,
        )
