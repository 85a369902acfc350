"""The port that every benchmark stands behind: its prompts, what a judge is asked, what the replies mean.

A benchmark generates nothing and calls nobody. The eval stage asks the model turn by turn, hands the
transcripts over, sends the requests it gets back to the judge, and stores the verdicts; scores are made
from stored verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zephyrctl.records import Message, Verdict, prompt_id

NO_JUDGE = "exact"
"""The `judge` of a verdict that was computed, not judged."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark: one or more user turns, each asked after the model's own earlier answers."""

    family: str
    turns: tuple[str, ...]

    @property
    def prompt_id(self) -> str:
        """The hash of the user turns."""
        return prompt_id([Message(role="user", content=turn) for turn in self.turns])


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn: `greedy` at temperature 0, or `sampled` at the temperature given."""

    name: str
    temperature: float


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's answer to one turn. `text` None = it gave none, and the row fails; `reason` says why."""

    text: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """An item with the model's answer to each turn, under one decoding."""

    item: Item
    decoding: str
    replies: tuple[Reply, ...]

    def before(self, turn: int) -> list[Message]:
        """The conversation up to and with the user's message of `turn` (1-based)."""
        messages: list[Message] = []
        for place in range(turn):
            messages.append(Message(role="user", content=self.item.turns[place]))
            if place < turn - 1:
                messages.append(Message(role="assistant", content=self.replies[place].text or ""))
        return messages


@dataclass(frozen=True, slots=True)
class Grading:
    """One verdict to be. `request` is what the judge is asked; None = `verdict` is settled already."""

    verdict: Verdict
    request: str | None = None

    def failed(self, reason: str) -> Verdict:
        """The verdict when the judge gave no reply: missing, with the reason, never a default."""
        return self.verdict.model_copy(update={"score": None, "reason": reason})


class Benchmark(Protocol):
    """A suite. `name` is the `suite` of its verdicts, `scale` its worst and best score."""

    @property
    def name(self) -> str: ...
    @property
    def scale(self) -> tuple[float, float]: ...
    @property
    def judged(self) -> bool:
        """Whether a judge is asked."""
        ...

    @property
    def compares(self) -> bool:
        """Whether the model's answers are compared with the baseline's, which then must be there."""
        ...

    def items(self, rows: int, seed: int) -> list[Item]:
        """The prompts; equal arguments give equal prompts, whatever model is measured."""
        ...

    def gradings(self, transcript: Transcript, baseline: Transcript | None, judge: str) -> list[Grading]:
        """What is to be graded in one transcript. `judge` is the label that goes into the verdicts."""
        ...

    def read(self, grading: Grading, reply: str) -> Verdict:
        """The verdict that a judge's reply gives; score None with a reason where it cannot be read."""
        ...


def draft(
    suite: str,
    transcript: Transcript,
    turn: int,
    judge: str,
    *,
    reference: str | None = None,
    order: str = "",
) -> Verdict:
    """A verdict on one turn, not yet scored; failed already where the model gave no answer."""
    reply = transcript.replies[turn - 1]
    return Verdict(
        suite=suite,
        decoding=transcript.decoding,
        prompt_id=transcript.item.prompt_id,
        turn=turn,
        family=transcript.item.family,
        question=transcript.item.turns[turn - 1],
        answer=reply.text or "",
        reference=reference,
        score=None,
        judge=judge,
        order=order,
        reason=f"no answer: {reply.reason or 'unknown'}" if reply.text is None else None,
    )


def settled(verdict: Verdict, score: float, reason: str | None = None) -> Grading:
    """A grading that needs no judge."""
    return Grading(verdict.model_copy(update={"score": score, "reason": reason}))


def turns(transcript: Transcript) -> Sequence[int]:
    """The 1-based numbers of a transcript's turns."""
    return range(1, len(transcript.item.turns) + 1)
