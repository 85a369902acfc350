"""The requests of a judge, and the short turn that follows a reply which cannot be read.

Where the model is known to follow a JSON schema the reply is JSON, else it is sections in words; both bind a rating
to its text by label. What one further turn does not mend is missing, with its first reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zephyrctl.asking.seats import Seat, trouble
from zephyrctl.judges import ultrafeedback
from zephyrctl.judges.base import Parsed
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Failure, Sampling, Schema
from zephyrctl.providers.hosted.capabilities import MESSAGES, RESPONSES, SERVER, Accepts
from zephyrctl.records import Message, row_seed
from zephyrctl.stages.gen_prefs.answered import AskAll

REPAIR = "repair"
"""The last word of the purpose of a further turn: `aspect repair`, `overall repair`."""
_CUT = ("length", "reasoning_cut")
_REPAIRABLE = ("text", "length", "empty")
"""Outcomes after which the same model may still give its ratings; a refusal is its answer."""
_SHORT, _SHORT_PER_TEXT = 64, 32
"""Tokens that ratings without words take at most: at all, and for each text."""
_UNKNOWN = (SERVER, RESPONSES, MESSAGES)


@dataclass(frozen=True)
class Judging:
    """What of the stage's config decides the judge's requests. `repair` = an unreadable reply gets a further turn."""

    seed: int
    aspects: tuple[str, ...]
    overall: bool
    judge_temperature: float
    judge_max_tokens: int
    repair: bool = True


@dataclass(frozen=True)
class Judgement:
    """One request to the judge: an aspect over completions in the order shown, or the overall score of one.

    `shown` holds completion ids; a reply's result for `Text n` belongs to the n-th of them. `structured` = the
    reply is to be JSON.
    """

    kind: Literal["aspect", "overall"]
    aspect: str
    shown: tuple[str, ...]
    request: str
    structured: bool = False

    def parse(self, reply: str) -> list[Parsed]:
        """One result for each text shown, in the order shown."""
        if self.kind == "overall":
            return [ultrafeedback.parse_overall(reply)]
        return ultrafeedback.parse_aspect(reply, len(self.shown), self.aspect)

    def schema(self, *, words: bool) -> Schema | None:
        """The form of the reply, with rationales (`words`) or ratings alone; None = no JSON."""
        if not self.structured:
            return None
        if self.kind == "overall":
            return ultrafeedback.overall_schema(critique=words)
        return ultrafeedback.aspect_schema(len(self.shown), self.aspect, rationale=words)

    def repair(self) -> str:
        """The turn that asks for the ratings alone."""
        if self.kind == "overall":
            return ultrafeedback.repair_overall(structured=self.structured)
        return ultrafeedback.repair_aspect(len(self.shown), self.aspect, structured=self.structured)


@dataclass(frozen=True)
class Judged:
    """What came of one judgement: `parsed` None = a reply is not paid for; `repaired` = a further turn was asked;
    `cut` = the first reply was cut off at its limit."""

    parsed: list[Parsed] | None
    repaired: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Judge:
    """A teacher in the judge's seat. `draw` numbers samples of the same requests."""

    teacher: Seat
    settings: Judging
    draw: int = 0

    def judgements(
        self, prompt: Sequence[Message], texts: Mapping[str, str], orders: Mapping[str, Sequence[str]]
    ) -> list[Judgement]:
        """The requests that rate a prompt's completions, `texts` by completion_id: one for each aspect over all of
        them in its order, one overall for each. The judge sees the prompt and nothing else that a model was told."""
        structured = takes_schema(self.teacher.provider)
        made = []
        for aspect in self.settings.aspects:
            shown = [texts[i] for i in orders[aspect]]
            request = ultrafeedback.aspect_prompt(prompt, shown, aspect, structured=structured)
            made.append(Judgement("aspect", aspect, tuple(orders[aspect]), request, structured))
        for identity, text in texts.items() if self.settings.overall else ():
            request = ultrafeedback.overall_prompt(prompt, text, structured=structured)
            made.append(Judgement("overall", "overall", (identity,), request, structured))
        return made

    def ask(self, judgement: Judgement) -> Ask:
        """The request itself."""
        sampling = self._sampling(judgement, self.settings.judge_max_tokens)
        messages = (Message(role="user", content=judgement.request),)
        return Ask(messages, sampling, self.draw, judgement.kind, judgement.schema(words=True))

    def repair(self, judgement: Judgement, said: str) -> Ask:
        """The further turn after a reply that cannot be read; where nothing was `said`, all in one turn.

        Its limit of tokens is small, except where the model may reason first, which counts as well.
        """
        request, turn = judgement.request, judgement.repair()
        messages = (
            Message(role="user", content=request),
            Message(role="assistant", content=said),
            Message(role="user", content=turn),
        )
        most = self.settings.judge_max_tokens
        if getattr(self.teacher.provider, "accepts", SERVER).reasoning == "none":
            most = min(most, _SHORT + _SHORT_PER_TEXT * len(judgement.shown))
        return Ask(
            messages if said.strip() else (Message(role="user", content=f"{request}\n{turn}"),),
            self._sampling(judgement, most),
            self.draw,
            f"{judgement.kind} {REPAIR}",
            judgement.schema(words=False),
        )

    def rate(self, wanted: Sequence[Judgement], ask: AskAll) -> list[Judged]:
        """What came of each request, in the same order.

        Where anything in a reply is unreadable, one further turn is asked, unless the request failed or was refused.
        What was readable in the first reply stays; the rest is what the further turn says, else missing.
        """
        replies = ask([(self.teacher, self.ask(one)) for one in wanted], "judgements")
        parsed = [_read(one, reply) for one, reply in zip(wanted, replies, strict=True)]
        cut = [isinstance(reply, Answer) and reply.outcome in _CUT for reply in replies]
        judged = [
            Judged(None if _unpaid(reply) else p, cut=short)
            for p, reply, short in zip(parsed, replies, cut, strict=True)
        ]
        again = {
            i: self.repair(wanted[i], reply.text)
            for i, reply in enumerate(replies)
            if self.settings.repair
            and isinstance(reply, Answer)
            and reply.outcome in _REPAIRABLE
            and any(p.failed for p in parsed[i])
        }
        mended = ask([(self.teacher, one) for one in again.values()], "repairs") if again else ()
        for i, reply in zip(again, mended, strict=True):
            second = _read(wanted[i], reply)
            merged = [_mended(a, b) for a, b in zip(parsed[i], second, strict=True)]
            judged[i] = Judged(None if _unpaid(reply) else merged, repaired=True, cut=cut[i])
        return judged

    def _sampling(self, judgement: Judgement, max_tokens: int) -> Sampling:
        request = hashlib.sha256(judgement.request.encode()).hexdigest()
        return self.teacher.sampling(
            temperature=self.settings.judge_temperature,
            max_tokens=max_tokens,
            seed=row_seed(self.settings.seed, request, self.draw),
        )


def takes_schema(provider: AnyProvider) -> bool:
    """Whether a model is known to follow a JSON schema: by the table of its vendor's models, or because the project
    file says what its endpoint accepts.

    Of a server of which nothing is known it is not assumed: one that refuses schemas would refuse every request.
    """
    accepts = getattr(provider, "accepts", None)
    if not isinstance(accepts, Accepts) or any(accepts is server for server in _UNKNOWN):
        return False
    return accepts.schema and not accepts.unsure


def _unpaid(reply: Answer | Failure) -> bool:
    return isinstance(reply, Failure) and reply.reason == UNPAID


def _read(judgement: Judgement, reply: Answer | Failure) -> list[Parsed]:
    found = trouble(reply)
    if found is not None or isinstance(reply, Failure):
        reason, detail = found or ("failed", "")
        return [Parsed(reason=f"{reason}: {detail}") for _ in judgement.shown]
    return judgement.parse(reply.text)


def _mended(first: Parsed, second: Parsed) -> Parsed:
    """The first reading where it is one, else the second, else missing for the first reason."""
    if not first.failed:
        return first
    if second.failed:
        head, colon, rest = (first.reason or "unreadable").partition(":")
        return replace(first, reason=f"{head} after repair{colon}{rest}")
    return replace(second, rationale=second.rationale or first.rationale)
