"""What hosted models have in common: one attempt over HTTP, balanced over equal addresses."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from zephyrctl import __version__
from zephyrctl.errors import UsageError
from zephyrctl.money import Price
from zephyrctl.providers.base import Ask, Reading, Received, World, clean_text
from zephyrctl.providers.hosted.capabilities import SERVER, Accepts
from zephyrctl.providers.hosted.endpoints import Balance, Place, origin_of
from zephyrctl.providers.hosted.faults import fault_of, request_id_of
from zephyrctl.providers.hosted.fitting import Fit, Fitted
from zephyrctl.providers.hosted.keys import api_key
from zephyrctl.providers.hosted.ratelimits import rest_of
from zephyrctl.providers.hosted.transport import Reply, Transport, Unreachable

_AGENT = f"zephyrctl/{__version__}"
_PER_MESSAGE = 16
"""Tokens that a server may add around a message: its role and separators."""
_PER_SCHEMA = 1000
"""Tokens that a server may add to explain a schema to its model."""
_SCHEMA_FIELDS = ("response_format", "text", "output_config")


class HostedProvider(ABC):
    """A model behind an HTTP API; subclasses say how a body is made and read and how a key is shown.

    `accepts` = which settings the model takes; `fit` decides what happens to the others. The key is asked for when
    a request is made; it is not kept on the object.
    """

    kind: str
    endpoint: str
    limits: tuple[str, ...]
    """Fields of a body that may hold the limit of output tokens."""

    def __init__(
        self,
        model: str,
        place: Place,
        *,
        accepts: Accepts | None = None,
        fit: Fit | None = None,
        price: Price | None = None,
        label: str | None = None,
        world: World = "real",
        notices: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.place = place
        self.origin = place.origin
        self.offline = place.offline
        self.rpm, self.tpm = place.rpm, place.tpm
        self.label = label or f"{self.kind}:{model}"
        self.world: World = world
        self.price = price
        self.accepts = accepts or SERVER
        self._fit = fit or Fit()
        self._notices = (*place.notices, *notices)
        self._balance = Balance(place.urls)
        self._transport = Transport()
        self._dropped: set[str] = set()

    @property
    def dropped(self) -> tuple[str, ...]:
        """The settings that were left out of requests because the model refuses them."""
        return tuple(sorted(self._dropped))

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of this model and its addresses; grows when an address fails."""
        return (*self._notices, *self._balance.told)

    @abstractmethod
    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a request, its fields in the order in which the vendor's SDK sends them."""

    @abstractmethod
    def read(self, raw: bytes) -> Reading:
        """What a reply says. Raises Retryable("bad_envelope") for bytes that are no reply."""

    def key(self) -> str | None:
        """The API key of the place, None where it takes none. Raises AuthError when it is missing."""
        place = self.place
        return api_key(place.key_variable, place.key_example) if place.key_variable else None

    async def send(self, body: Mapping[str, Any]) -> Received:
        """One attempt. Raises AuthError, UsageError, Retryable or Rejected."""
        if self.offline:
            raise UsageError(
                f"{self.label} is an offline endpoint: nothing can be sent to it from here",
                hint="zephyrctl ledger batch export writes its requests to a file",
            )
        url, reply = await self._answered(encoded(body), self._headers(self.key()))
        if reply.status >= 300:
            raise fault_of(
                reply, label=self.label, origin=origin_of(url), key_variable=self.place.key_variable
            )
        return Received(reply.body, request_id_of(reply.headers), rest_of(reply.headers))

    async def _answered(self, payload: bytes, headers: Mapping[str, str]) -> tuple[str, Reply]:
        """The reply of the first address that can be reached. Nothing went to those that cannot."""
        others = len(self.place.urls)
        while True:
            others -= 1
            with self._balance.taken() as url:
                try:
                    reply = await self._transport.post(url + self.endpoint, payload, headers)
                except Unreachable as error:
                    if error.reason == "too_many_files":
                        raise
                    self._balance.unreachable(url)
                    if others < 1:
                        raise
                    continue
            self._balance.reached(url)
            return url, reply

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """The most tokens a request can be charged for: (input, output, hidden reasoning included).

        Strict: a token of a byte-level vocabulary is at least one byte of UTF-8, and every byte of the body is
        counted, its field names too, with 16 tokens for each message and 1,000 for a schema on top.
        """
        messages = body.get("messages") or body.get("input") or ()
        added = _PER_MESSAGE * (len(messages) + 2)
        if any(name in body for name in _SCHEMA_FIELDS):
            added += _PER_SCHEMA
        most = next((body[name] for name in self.limits if name in body), 0)
        return len(encoded(body)) + added, int(most)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones in its own event loop."""
        await self._transport.aclose()

    def _headers(self, key: str | None) -> dict[str, str]:
        """The headers of a request, the key among them, as both vendors' SDKs send it."""
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": _AGENT}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _fitted(self, ask: Ask) -> Fitted:
        fitted = self._fit.fitted(ask, self.accepts, self.label)
        self._dropped |= fitted.dropped
        return fitted


def encoded(body: Mapping[str, Any]) -> bytes:
    """A body as the bytes that the vendors' SDKs send for it."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def chat_messages(ask: Ask, system: str) -> list[dict[str, str]]:
    """The messages of an ask; `system` = the role of instructions (`none` = at the head of the first user message).

    A lone surrogate, which no UTF-8 can hold, is sent as U+FFFD.
    """
    turns = [{"role": m.role, "content": clean_text(m.content)} for m in ask.messages]
    if system == "none":
        told = [turn["content"] for turn in turns if turn["role"] == "system"]
        others = [turn for turn in turns if turn["role"] != "system"]
        first = "\n\n".join([*told, *(turn["content"] for turn in others[:1])])
        return [{"role": "user", "content": first}, *others[1:]] if told else others
    return [{**turn, "role": system} if turn["role"] == "system" else turn for turn in turns]
