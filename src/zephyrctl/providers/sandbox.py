"""The embedded teacher, its judge and its pool as models.

Same port, same caller, same ledger as any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from zephyrctl.errors import UsageError
from zephyrctl.money import FREE, Price, Tokens
from zephyrctl.providers.base import (
    Ask,
    Reading,
    Received,
    World,
    clean_text,
    count,
    json_object,
    outcome_of,
    wire_messages,
)


class SandboxProvider:
    """A role of the sandbox.

    Tokens are counted as words; the draw is in the body because the teacher draws with it.
    """

    kind = "sandbox"
    origin = "sandbox"
    endpoint = "reply/1"
    world: World = "sandbox"
    price: Price = FREE
    dropped: tuple[str, ...] = ()

    def __init__(self, role: str) -> None:
        from zephyrctl.sandbox.teacher import ROLES

        if role not in ROLES:
            raise UsageError(
                f"the sandbox has no role '{role}'",
                hint="one of: " + ", ".join(f"sandbox:{r}" for r in ROLES),
            )
        self.role = role
        self.label = f"sandbox:{role}"

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The request as the teacher reads it."""
        return {
            "model": self.role,
            "messages": wire_messages(ask.messages),
            "temperature": ask.sampling.temperature,
            "seed": ask.sampling.seed or 0,
            "draw": ask.draw,
        }

    async def send(self, body: Mapping[str, Any]) -> Received:
        """The teacher's reply; pure computing, so it never fails for a while."""
        from zephyrctl.sandbox.teacher import reply

        text = reply(
            body["model"],
            body["messages"],
            draw=body["draw"],
            seed=body["seed"],
            temperature=body["temperature"],
        )
        words = sum(len(message["content"].split()) for message in body["messages"])
        document = {
            "model": body["model"],
            "text": text,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": words, "completion_tokens": len(text.split())},
        }
        return Received(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Nothing: its words cost nothing."""
        return 0, 0

    def read(self, raw: bytes) -> Reading:
        """What a stored reply says."""
        document = json_object(raw)
        text = clean_text(str(document.get("text", "")))
        usage = document.get("usage") or {}
        return Reading(
            text=text,
            outcome=outcome_of(text),
            finish_reason=str(document.get("finish_reason", "stop")),
            served_model=self.label,
            tokens=Tokens(count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))),
        )
