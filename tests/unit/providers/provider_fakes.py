"""Providers whose every reply is decided by the test."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from zephyrctl.providers.base import Ask, Reading, Sampling, World, json_object, outcome_of, wire_messages
from zephyrctl.records import Message


def ask(text: str, draw: int = 0) -> Ask:
    return Ask((Message(role="user", content=text),), Sampling(), draw)


def said(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


class FakeModel:
    """Answers `<name> says <question>`; the raw reply is JSON with one text."""

    kind = "fake"
    origin = "here"
    endpoint = "/"
    world: World = "sandbox"

    def __init__(self, name: str = "fake") -> None:
        self.label = f"fake:{name}"
        self.name = name

    def wire(self, ask: Ask) -> dict[str, Any]:
        return {"model": self.name, "messages": wire_messages(ask.messages)}

    def read(self, raw: bytes) -> Reading:
        text = str(json_object(raw)["text"])
        return Reading(text, outcome_of(text), "stop", self.name)

    def raw(self, body: Mapping[str, Any]) -> bytes:
        return json.dumps({"text": f"{self.name} says {said(body)}"}).encode()


class FakeProvider(FakeModel):
    """`script` is awaited before each reply with (body, times sent before); what it raises is the outcome."""

    def __init__(
        self, name: str = "fake", script: Callable[[Mapping[str, Any], int], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(name)
        self.script = script
        self.sent: list[str] = []
        self.closed = 0

    async def send(self, body: Mapping[str, Any]) -> bytes:
        times = self.sent.count(said(body))
        self.sent.append(said(body))
        if self.script is not None:
            await self.script(body, times)
        return self.raw(body)

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
