"""One distinct request on its way.

Who is asked, its place in the ledger, and how its bytes become an answer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from zephyrctl.ledger.entries import Request, StoredReply
from zephyrctl.money import Tokens
from zephyrctl.providers.base import Answer, AnyProvider, Ask, Failure, Reading, Retryable, clean_text
from zephyrctl.providers.calling.line import Line
from zephyrctl.redact import redact

Result = Answer | Failure

_MOST_TOKENS = 10**12
"""Of one reply; the sums of what replies cost stay within what a database can hold."""


@dataclass(eq=False, slots=True)
class Job:
    """A request that is not sent twice, and what it went through so far.

    `reserve` = the most it can cost, in uusd (None = not known); `tries` = failed attempts; `limited` = refusals
    (429); `waited` = seconds waited because the server or another process asked for it; `trouble` = the line's
    signs of life at its first failure that may be an outage; `batched` = it is charged as part of a batch.
    """

    provider: AnyProvider
    line: Line
    request: Request
    ask: Ask
    reserve: int | None = None
    tries: int = 0
    limited: int = 0
    waited: float = 0.0
    trouble: int | None = None
    on_wire: bool = False
    batched: bool = False

    @property
    def key(self) -> str:
        """The ledger's key."""
        return self.request.key

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.request.text)

    def bound(self) -> None:
        """Work out what it can cost at most, as part of a batch where it is `batched`."""
        provider = self.provider
        self.reserve = None
        if provider.price is not None:
            bound = provider.bound(self.request.body)
            self.reserve = provider.price.worst(*bound, batch=self.batched)

    def cost(self, tokens: Tokens | None) -> int | None:
        """What a reply costs, in uusd: the reservation where the provider did not count, None without a price."""
        price = self.provider.price
        if price is None:
            return None
        return self.reserve if tokens is None else price.cost(tokens, batch=self.batched)

    def read(self, raw: bytes) -> StoredReply:
        """Fresh bytes as the ledger keeps them.

        Raises Retryable("bad_envelope") for bytes that are no reply.
        """
        return stored(raw, self.provider.read(raw))

    def answer(self, reply: StoredReply, *, replayed: bool) -> Result:
        """What the stored bytes say, counted. A replay and a fresh reply take this same way."""
        try:
            reading = self.provider.read(reply.body)
        except Retryable as error:
            return self.failure("unreadable", f"the stored reply cannot be read: {error.detail}")
        return self.answer_of(reading, self.cost(reading.tokens), replayed=replayed)

    def answer_of(self, reading: Reading, cost: int | None, *, replayed: bool) -> Answer:
        """A reply that was read already, counted with its cost."""
        self.line.answered()
        answer = Answer(
            text=reading.text,
            outcome=reading.outcome,
            finish_reason=reading.finish_reason,
            served_model=reading.served_model,
            tokens=reading.tokens,
            key=self.request.key,
            replayed=replayed,
            reasoning=reading.reasoning,
            logprobs=reading.logprobs,
        )
        self.line.tally.answered(answer, cost or 0)
        return answer

    def failure(self, reason: str, detail: str) -> Failure:
        """The end of this row without a reply, counted; keys never stand in the detail."""
        self.line.tally.failed(reason)
        return Failure(reason, redact(detail), self.request.key)


def stored(raw: bytes, reading: Reading) -> StoredReply:
    """A reply with what was read from it, as the ledger can keep it: names without lone surrogates, and no token counts
    that are beyond all measure."""
    tokens = reading.tokens
    if tokens is not None and max(dataclasses.astuple(tokens)) > _MOST_TOKENS:
        tokens = None
    return StoredReply(
        raw,
        reading.outcome,
        clean_text(reading.finish_reason),
        tokens,
        clean_text(reading.served_model),
        clean_text(reading.fingerprint),
    )
