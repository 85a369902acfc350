"""One distinct request on its way.

Who is asked, its place in the ledger, and how its bytes become an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from zephyrctl.ledger.ledger import Request, StoredReply
from zephyrctl.providers.base import Answer, AnyProvider, Failure, Retryable
from zephyrctl.providers.line import Line
from zephyrctl.redact import redact

Result = Answer | Failure


@dataclass(frozen=True)
class Job:
    """A request that is not sent twice. `size` is the length of its body, by which batches are formed."""

    provider: AnyProvider
    line: Line
    request: Request
    size: int

    @property
    def key(self) -> str:
        """The ledger's key."""
        return self.request.key

    def read(self, raw: bytes) -> StoredReply:
        """Fresh bytes as the ledger keeps them.

        Raises Retryable("bad_envelope") for bytes that are no reply.
        """
        reading = self.provider.read(raw)
        usage = (reading.usage.prompt_tokens, reading.usage.completion_tokens) if reading.usage else None
        return StoredReply(raw, reading.outcome, reading.finish_reason, usage, reading.served_model)

    def answer(self, reply: StoredReply, *, replayed: bool) -> Result:
        """What the stored bytes say, counted. A replay and a fresh reply take this same way."""
        try:
            reading = self.provider.read(reply.body)
        except Retryable as error:
            return self.failure("unreadable", f"the stored reply cannot be read: {error.detail}")
        self.line.answered()
        answer = Answer(
            text=reading.text,
            outcome=reading.outcome,
            finish_reason=reading.finish_reason,
            served_model=reading.served_model,
            usage=reading.usage,
            key=self.key,
            replayed=replayed,
        )
        self.line.tally.answered(answer)
        return answer

    def failure(self, reason: str, detail: str) -> Failure:
        """The end of this row without a reply, counted; keys never stand in the detail."""
        self.line.tally.failures[reason] += 1
        return Failure(reason, redact(detail), self.key)
