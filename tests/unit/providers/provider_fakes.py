"""Providers whose every reply is decided by the test."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from zephyrctl.events import Emit, silent
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import FREE, Price, Tokens
from zephyrctl.providers.base import (
    Answer,
    Ask,
    Failure,
    Reading,
    Received,
    Sampling,
    World,
    json_object,
    outcome_of,
    wire_messages,
)
from zephyrctl.providers.calling.caller import Caller, CallSettings
from zephyrctl.records import Message


def ask(text: str, draw: int = 0) -> Ask:
    return Ask((Message(role="user", content=text),), Sampling(), draw)


def said(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


async def no_sleep(seconds: float) -> None:
    """A clock without waiting."""
    await asyncio.sleep(0)


def asking(
    ledger: Ledger,
    *,
    run: str = "run",
    emit: Emit = silent,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **settings: Any,
) -> Caller:
    """A caller; settings are those of CallSettings."""
    return Caller(ledger, run=Run(run), emit=emit, settings=CallSettings(**settings), sleep=sleep)


def texts(results: Sequence[Answer | Failure]) -> list[str]:
    """The answers' texts, and failures as `<reason>`."""
    return [r.text if isinstance(r, Answer) else f"<{r.reason}>" for r in results]


class FakeModel:
    """Answers `<name> says <question>`; the raw reply is JSON with one text, and a count of tokens (`usage`)."""

    kind = "fake"
    origin = "here"
    endpoint = "/"
    world: World = "real"
    dropped: tuple[str, ...] = ()
    price: Price | None = FREE
    most = (10, 20)
    """The bound of every call: tokens in and out."""
    usage: Callable[[Mapping[str, Any]], tuple[int, int] | None] = staticmethod(lambda body: (10, 5))

    def __init__(self, name: str = "fake") -> None:
        self.label = f"fake:{name}"
        self.name = name

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        return self.most

    def wire(self, ask: Ask) -> dict[str, Any]:
        return {"model": self.name, "messages": wire_messages(ask.messages)}

    def read(self, raw: bytes) -> Reading:
        reply = json_object(raw)
        text, usage = str(reply["text"]), reply.get("usage")
        tokens = Tokens(*usage) if usage else None
        return Reading(text, outcome_of(text), "stop", self.name, tokens)

    def raw(self, body: Mapping[str, Any]) -> bytes:
        return json.dumps({"text": f"{self.name} says {said(body)}", "usage": self.usage(body)}).encode()


class FakeProvider(FakeModel):
    """`script` is awaited before each reply with (body, times sent before); what it raises is the outcome."""

    def __init__(
        self, name: str = "fake", script: Callable[[Mapping[str, Any], int], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(name)
        self.script = script
        self.sent: list[str] = []
        self.times: Counter[str] = Counter()
        self.closed = 0

    async def send(self, body: Mapping[str, Any]) -> Received:
        times = self.times[said(body)]
        self.times[said(body)] += 1
        self.sent.append(said(body))
        if self.script is not None:
            await self.script(body, times)
        return Received(self.raw(body), f"req-{len(self.sent)}")

    async def aclose(self) -> None:
        self.closed += 1


class FakeBatch(FakeModel):
    """A local model; `batches` are the questions computed together, `fail_at` the batch that raises."""

    def __init__(self, max_batch: int = 3, fail_at: int | None = None) -> None:
        super().__init__("batch")
        self.max_batch = max_batch
        self.batches: list[list[str]] = []
        self.fail_at = fail_at

    def raw_in_batch(self, body: Mapping[str, Any], together: Sequence[str]) -> bytes:
        """A reply that depends on the whole batch, as floating-point sums do."""
        return json.dumps({"text": f"{said(body)} among {sorted(together)}"}).encode()

    def send_batch(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        if self.fail_at == len(self.batches):
            raise RuntimeError("the machine went away")
        together = [said(body) for body in bodies]
        self.batches.append(together)
        return [self.raw_in_batch(body, together) for body in bodies]
