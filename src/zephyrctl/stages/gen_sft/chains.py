"""The dSFT loop of the ZEPHYR paper: respond to a seed, refine the instruction from (instruction, response),
respond again.

A seed and what is refined from it is a chain. Chains grow side by side, in waves: every request of a wave
depends on the chain's own past only, and its sampling seed on its text only, so neither arrival order nor the
number of seeds changes a chain. Duplicates are decided afterwards, in the order of seeds, so a run with more
seeds contains the run with fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.asking.ending import partial_counts
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import trouble
from zephyrctl.config import canonical, digest_of
from zephyrctl.judges.templates import digest, render
from zephyrctl.providers.base import UNPAID, Answer, Failure
from zephyrctl.quote import quote_blocks
from zephyrctl.records import Message, SftRow, prompt_id

_PACKAGE, _REFINE = "zephyrctl.stages.gen_sft", "prompts/refine.md"

Dialogue = tuple[Message, ...]
AskAll = Callable[[Sequence[Dialogue], str, str], Sequence[Answer | Failure]]
"""Asks the teacher: dialogues that end with the user, what for, and a task name in, replies in the same order
out."""

ANSWER, REFINEMENT = "answer", "refinement"


@dataclass(frozen=True)
class Reject:
    """A pair that could not be made: which round of which seed, and why."""

    seed: Seed
    round: int
    reason: str
    detail: str
    said: Dialogue

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        row = {
            "seed_id": self.seed.row.prompt_id,
            "round": self.round,
            "messages": [m.model_dump() for m in self.said],
        }
        return {"where": self.seed.where, "reason": self.reason, "detail": self.detail, "row": canonical(row)}


@dataclass
class Round:
    """One pair of a chain: what was asked, what is still to be asked, the dialogue so far."""

    prompt: Dialogue
    waiting: list[str]
    said: list[Message]

    @property
    def identity(self) -> str:
        """Equal for rounds that ask the same."""
        return digest_of([[[m.role, m.content] for m in self.prompt], self._follow_ups()])

    def _follow_ups(self) -> list[str]:
        return [m.content for m in self.said[len(self.prompt) :] if m.role == "user"] + self.waiting


@dataclass
class Chain:
    """A seed, its finished rounds, and the reject that ended it, if any."""

    seed: Seed
    rounds: list[Round] = field(default_factory=list)
    end: Reject | None = None


def refine_request(instruction: str, response: str) -> str:
    """The request for the next instruction, the old one and its response as fenced blocks."""
    return render(_PACKAGE, _REFINE, blocks=quote_blocks({"INSTRUCTION": instruction, "RESPONSE": response}))


def template_digests() -> dict[str, str]:
    """The hash of the refine prompt, for manifest and step key."""
    return {"gen-sft/refine.md": digest(_PACKAGE, _REFINE)}


def grow(seeds: Sequence[Seed], rounds: int, ask: AskAll) -> list[Chain]:
    """The chains of `seeds`, in the same order, each with up to `rounds` refinements.

    A chain ends early where a reply fails, is refused, empty or cut off, or where the refined instruction
    equals the one it came from. Follow-up turns of a seed are asked one by one, with the teacher's own
    answers in context.
    """
    chains = [Chain(seed) for seed in seeds]
    for chain in chains:
        prompt = tuple(chain.seed.row.prompt)
        chain.rounds.append(Round(prompt, list(chain.seed.row.follow_ups), list(prompt)))
    _respond(chains, 0, ask)
    for number in range(1, rounds + 1):
        alive = [chain for chain in chains if chain.end is None]
        _refine(alive, number, ask)
        _respond([chain for chain in alive if chain.end is None], number, ask)
    return chains


def _respond(chains: Sequence[Chain], number: int, ask: AskAll) -> None:
    """Answers the open round of each chain, turn by turn."""
    open_ = list(chains)
    while open_:
        replies = ask([tuple(chain.rounds[-1].said) for chain in open_], ANSWER, f"round {number}: answers")
        going_on = []
        for chain, reply in zip(open_, replies, strict=True):
            current = chain.rounds[-1]
            text = _text_or_end(chain, reply, number, tuple(current.said))
            if text is None:
                chain.rounds.pop()
                continue
            current.said.append(Message(role="assistant", content=text))
            if current.waiting:
                current.said.append(Message(role="user", content=current.waiting.pop(0)))
                going_on.append(chain)
        open_ = going_on


def _refine(chains: Sequence[Chain], number: int, ask: AskAll) -> None:
    """Opens the next round of each chain with a refined instruction, or ends the chain.

    What is refined is the last instruction of the round's prompt and its answer: for a dialogue with
    follow-up turns, its first exchange. A system message stays; earlier turns do not, since the new
    instruction stands by itself.
    """
    requests = []
    for chain in chains:
        last = chain.rounds[-1]
        response = last.said[len(last.prompt)].content
        requests.append((Message(role="user", content=refine_request(last.prompt[-1].content, response)),))
    replies = ask(requests, REFINEMENT, f"round {number}: refinements")
    for chain, reply in zip(chains, replies, strict=True):
        prompt = chain.rounds[-1].prompt
        text = _text_or_end(chain, reply, number, prompt)
        if text is None:
            continue
        instruction = text.strip()
        if instruction == prompt[-1].content.strip():
            chain.end = Reject(chain.seed, number, "unchanged", "refined to the same instruction", prompt)
            continue
        system = tuple(m for m in prompt if m.role == "system")
        following = (*system, Message(role="user", content=instruction))
        chain.rounds.append(Round(following, [], list(following)))


def _text_or_end(chain: Chain, reply: Answer | Failure, number: int, said: Dialogue) -> str | None:
    found = trouble(reply)
    if found is None:
        return reply.text if isinstance(reply, Answer) else None
    reason, detail = found
    chain.end = Reject(chain.seed, number, reason, detail, said)
    return None


class Sieve:
    """Decides, in the order of seeds, which rounds become rows; counts everything so that the sums add up.

    For every run: seeds x (rounds + 1) = kept + dropped (by reason) + not reached. In a run that only replays the
    ledger, `unfinished` of them are neither made nor settled.
    """

    def __init__(self, rounds: int, model: str) -> None:
        self.kept = 0
        self.seeds = 0
        self.unfinished = 0
        self.rejects: list[Reject] = []
        self._rounds = rounds
        self._model = model
        self._seen: set[str] = set()

    def dropped(self) -> Counter[str]:
        """How many pairs were dropped, by reason."""
        return Counter(reject.reason for reject in self.rejects)

    def not_reached(self) -> int:
        """How many pairs were never asked for because their chain had ended."""
        return self.possible - self.kept - len(self.rejects)

    def counts(self, bad_rows: int) -> dict[str, Any]:
        """For the manifest: seeds x (rounds + 1) = kept + dropped + not reached."""
        counts: dict[str, Any] = {
            "seeds": self.seeds,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped().items())),
            "not_reached": self.not_reached(),
            "bad_rows": bad_rows,
        }
        return counts | partial_counts(self.possible - self.unfinished, self.possible)

    @property
    def possible(self) -> int:
        """How many pairs the seeds can make."""
        return self.seeds * (self._rounds + 1)

    def rows(self, chain: Chain) -> Iterator[SftRow]:
        """The rows of one chain. An instruction that an earlier chain asked is dropped and ends this
        chain."""
        self.seeds += 1
        parent: str | None = None
        for number, done in enumerate(chain.rounds):
            if done.identity in self._seen:
                detail = "an earlier row asks the same"
                self.rejects.append(Reject(chain.seed, number, "duplicate", detail, done.prompt))
                return
            self._seen.add(done.identity)
            row = self._row(chain.seed, number, done, parent)
            self.kept += 1
            parent = row.row_id
            yield row
        if chain.end is not None:
            self.rejects.append(chain.end)
            if chain.end.reason == UNPAID:
                self.unfinished += self._rounds + 1 - chain.end.round

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
