"""The pool answers: for each prompt its completions, and why others are missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zephyrctl.asking.estimate import Range, size, text_tokens
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.providers.base import Answer, AnyProvider, Ask, Failure, Sampling
from zephyrctl.records import Completion, Message, completion_id, row_seed
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll
from zephyrctl.stages.gen_prefs.pooling import Member, chosen, members_of
from zephyrctl.stages.gen_prefs.principles import Principles, with_principle

if TYPE_CHECKING:
    from zephyrctl.artifacts.manifest import InputRef
    from zephyrctl.asking.sketch import Sketch

_SAMPLE = (Message(role="user", content="x"),)


@dataclass(frozen=True)
class Answering:
    """What of the stage's config decides the completions: `members` of the pool answer each prompt, `n` times each;
    `principles` None = no system messages."""

    seed: int
    temperature: float
    top_p: float
    max_tokens: int
    members: int = 4
    n: int = 1
    principles: Principles | None = None


@dataclass(frozen=True)
class _Wanted:
    """One completion to ask for: by whom, which draw, with which principle and its wording."""

    member: Member
    draw: int
    principle: str | None
    wording: str | None


class Pool:
    """Models that are asked. What it asks of one prompt depends on that prompt, the settings and the pool alone."""

    def __init__(self, seats: Sequence[Seat], settings: Answering) -> None:
        self.members = members_of(seats)
        self.settings = settings
        self.most = min(settings.members, len(seats)) * settings.n

    @property
    def named(self) -> str:
        """The members, in words."""
        return ", ".join(member.label for member in self.members)

    def inputs(self) -> list[InputRef]:
        """Its models of our own by digest, and the principles, for the step key."""
        models = [ref for member in self.members for ref in member.seat.inputs("pool")]
        return models + (self.settings.principles.inputs() if self.settings.principles else [])

    def providers(self) -> list[AnyProvider]:
        """Whom it asks."""
        return [member.seat.provider for member in self.members]

    def close(self) -> None:
        """Lets go of its models."""
        for member in self.members:
            member.seat.close()

    def repeated_greedily(self) -> list[str]:
        """The members of which several draws are asked at temperature 0, where all draws are alike."""
        labels = [member.label for member in self.members]
        return sorted(
            {
                member.label
                for member in self.members
                if labels.count(member.label) * self.settings.n > 1
                and self._sampling(member.seat, seed=0).temperature == 0
            }
        )

    def answer(self, items: Sequence[Seed], ask: AskAll) -> list[Answered]:
        """For each prompt its completions in the order of the pool, and why others were left out."""
        wanted = [self._wanted(item) for item in items]
        replies = iter(
            ask(
                [
                    (one.member.seat, self._ask(item, one))
                    for item, group in zip(items, wanted, strict=True)
                    for one in group
                ],
                "completions",
            )
        )
        answered = []
        for item, group in zip(items, wanted, strict=True):
            found = Answered(item)
            for one in group:
                _take(found, one, next(replies))
            answered.append(found)
        return answered

    def draw(self, sketch: Sketch, items: Sequence[Seed]) -> Range:
        """Sketches its calls; the tokens of all completions."""
        seats = self._widest()
        calls: defaultdict[str, int] = defaultdict(int)
        prompts: defaultdict[str, Range] = defaultdict(Range)
        more = self._principle()
        for item in items:
            asked = text_tokens(sum(size(m.content) for m in item.row.prompt), len(item.row.prompt)) + more
            for member in self._members(item):
                calls[member.seat.label] += self.settings.n
                prompts[member.seat.label] += asked * self.settings.n
        texts = Range()
        for label, seat in seats.items():
            reply = sketch.reply(
                seat.provider, Ask(_SAMPLE, self._sampling(seat, seed=0), purpose="completion")
            )
            sketch.add(
                "pool", seat.provider, "completion", calls=calls[label], prompts=prompts[label], reply=reply
            )
            texts += reply * calls[label]
        return texts

    def _widest(self) -> dict[str, Seat]:
        """For each model the place that allows the longest answers: the others cost no more."""
        seats: dict[str, Seat] = {}
        for member in self.members:
            seat, label = member.seat, member.seat.label
            if label not in seats or self._limit(seat) > self._limit(seats[label]):
                seats[label] = seat
        return seats

    def _limit(self, seat: Seat) -> int:
        return self._sampling(seat, seed=0).max_tokens

    def _principle(self) -> Range:
        if self.settings.principles is None:
            return Range()
        mean, longest = self.settings.principles.lengths()
        return Range(0.0, text_tokens(round(mean)).likely, text_tokens(longest).high)

    def _members(self, item: Seed) -> list[Member]:
        return chosen(self.members, self.settings.members, self.settings.seed, item.row.prompt_id)

    def _wanted(self, item: Seed) -> list[_Wanted]:
        table, seed = self.settings.principles, self.settings.seed
        wanted = []
        for member in self._members(item):
            for draw in member.draws(self.settings.n):
                found = table.drawn(item.row, seed, member.label, draw) if table else None
                wanted.append(_Wanted(member, draw, *(found or (None, None))))
        return wanted

    def _ask(self, item: Seed, one: _Wanted) -> Ask:
        seed = row_seed(self.settings.seed, item.row.prompt_id, "completion", one.draw)
        sampling = self._sampling(one.member.seat, seed=seed)
        return Ask(with_principle(item.row.prompt, one.wording), sampling, one.draw, "completion")

    def _sampling(self, seat: Seat, *, seed: int) -> Sampling:
        settings = self.settings
        return seat.sampling(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=seed
        )


def _take(found: Answered, one: _Wanted, reply: Answer | Failure) -> None:
    problem, label = trouble(reply), one.member.label
    if problem is not None or isinstance(reply, Failure):
        reason, detail = problem or ("failed", "")
        found.leave_out(label, reason, detail)
        return
    found.kept.append(
        Completion(
            completion_id=completion_id(label, one.draw, reply.text),
            model=label,
            text=reply.text,
            finish_reason=reply.finish_reason,
            draw=one.draw,
            principle=one.principle,
        )
    )
