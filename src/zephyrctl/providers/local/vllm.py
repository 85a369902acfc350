"""A model on this machine that a vLLM of its own answers for, started with the first call that has to be sent."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.config import canonical
from zephyrctl.money import FREE
from zephyrctl.project import VllmSection
from zephyrctl.providers.base import Ask, Reading, Received, Retryable, wire_messages
from zephyrctl.providers.hosted.endpoints import Balance, Place
from zephyrctl.providers.hosted.fitting import Fit
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.local import fleet
from zephyrctl.records import row_seed

_ENDPOINT = "vllm/1"
"""Raised when equal bodies give other answers than before."""
_DIGEST_LETTERS = 16
_NO_MATTER = (
    "--gpu-memory-utilization",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--swap-space",
    "--cpu-offload-gb",
    "--enforce-eager",
    "--disable-log-requests",
    "--disable-log-stats",
    "--uvicorn-log-level",
)
"""Arguments of vLLM that decide about speed and memory, not about answers."""


class ServedModel:
    """A model folder behind servers of its own, one on each group of GPUs, over which calls are balanced.

    Nothing is started for what the ledger replays. `close` stops the servers and frees their memory; the next
    call starts them again. See `fleet.Fleet` for `hidden` and `logs`.
    """

    kind = "local"
    origin = "local"
    price = FREE

    def __init__(
        self,
        model: ModelSource,
        section: VllmSection,
        *,
        fit: Fit | None = None,
        hidden: frozenset[str] = frozenset(),
        logs: Path | None = None,
    ) -> None:
        self.model = model
        self.label = model.ref
        self.world: Literal["sandbox", "real"] = "sandbox" if model.world == "sandbox" else "real"
        self.endpoint = _ENDPOINT + _mark(section.args)
        self.notices = (f"{model.ref} is answered by vLLM ({' '.join(section.command)})",)
        name = f"sha256-{model.digest.removeprefix('sha256:')[:_DIGEST_LETTERS]}"
        self._client = _Client(name, Place((), self.origin), fit=fit, label=self.label)
        self._join = partial(fleet.join, model.path, name, section, hidden=hidden, logs=logs)
        self._enlist()
        self._starting: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    @property
    def dropped(self) -> tuple[str, ...]:
        """The settings that were left out of requests because they may be."""
        return self._client.dropped

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The body of a Chat Completions request. Its model is the head of the weights' digest, so that an
        answer is replayed for these weights alone; each draw has a seed of its own."""
        seed = ask.sampling.seed
        if seed is not None and ask.draw:
            own = row_seed(seed, canonical(wire_messages(ask.messages)), ask.draw) >> 32
            ask = replace(ask, sampling=replace(ask.sampling, seed=own))
        return self._client.wire(ask)

    def read(self, raw: bytes) -> Reading:
        """A chat completion. Raises Retryable("bad_envelope") where there is no choice with a message."""
        return replace(self._client.read(raw), served_model=self.label)

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """The most tokens a request can take: (input, output)."""
        return self._client.bound(body)

    async def send(self, body: Mapping[str, Any]) -> Received:
        """One attempt, after `ready`.

        Raises EnvironmentFault where the servers do not start or one has ended, Retryable or Rejected.
        """
        while True:
            await self.ready()
            servers = self._fleet
            if servers.enter():
                break
        try:
            self._client.reach(servers.urls, servers.key)
            return await self._client.send(body)
        except Retryable:
            servers.check()
            raise
        finally:
            servers.exit()

    async def ready(self) -> None:
        """Wait until the servers can be asked; the first to wait starts them.

        Raises EnvironmentFault where they do not start.
        """
        if not self._leave.alive:
            self._enlist()
        if self._fleet.up:
            return
        loop = asyncio.get_running_loop()
        task = self._starting.get(loop)
        if task is None or task.done():
            task = self._starting[loop] = loop.create_task(_start(self._fleet))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        # a call that is given up leaves the start to the others
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Close the connections; the servers stay."""
        await self._client.aclose()

    def close(self) -> None:
        """Stop the servers, unless another provider asks the same model, and wait until they are gone."""
        self._leave()

    def _enlist(self) -> None:
        self._fleet = self._join()
        # also where nobody closes it: when it is forgotten, and when the interpreter ends
        self._leave = weakref.finalize(self, fleet.leave, self._fleet)


async def _start(servers: fleet.Fleet) -> None:
    called_off = threading.Event()
    try:
        await asyncio.to_thread(servers.start, called_off.is_set)
    except asyncio.CancelledError:
        called_off.set()
        raise


class _Client(OpenAIProvider):
    """The servers as one endpoint; where they are is known once they run."""

    kind = "local"
    _secret: str | None = None

    def reach(self, urls: tuple[str, ...], secret: str) -> None:
        """Ask these addresses from now on."""
        if urls != self.place.urls:
            self.place = replace(self.place, urls=urls)
            self._balance = Balance(urls)
            self._secret = secret

    def key(self) -> str | None:
        """The servers' own key."""
        return self._secret


def _mark(args: Sequence[str]) -> str:
    """Nothing, or a short hash of the arguments that can change an answer (a quantisation, a template)."""
    kept: list[str] = []
    skipping = False
    for arg in args:
        if arg.startswith("-"):
            skipping = arg.partition("=")[0] in _NO_MATTER
        if not skipping:
            kept.append(arg)
    return "+" + hashlib.sha256(canonical(kept).encode()).hexdigest()[:8] if kept else ""
