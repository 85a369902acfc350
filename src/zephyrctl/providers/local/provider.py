"""A model folder on this machine as a provider: answers in batches, rendered exactly as in training."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.libraries import fit_threads, quiet
from zephyrctl.money import FREE, Tokens
from zephyrctl.providers.base import (
    Ask,
    Reading,
    Retryable,
    TokenLogprob,
    json_object,
    outcome_of,
    wire_messages,
)
from zephyrctl.providers.hosted.capabilities import Accepts
from zephyrctl.providers.hosted.fitting import Fit
from zephyrctl.providers.hosted.reasoning import split_thinking
from zephyrctl.providers.local.decoding import Loaded, answer_all, load_model

_ENDPOINT = "generate/1"
"""Raised when equal bodies give other answers than before."""
_ACCEPTS = Accepts(schema=False, reasoning="none", efforts=())
_TURN_TOKENS = 16
"""What a chat template may add to each message, at most."""


class LocalProvider:
    """A model folder that answers `max_batch` requests together. The model is loaded at the first batch,
    freed by `close`."""

    kind = "local"
    origin = "local"
    endpoint = _ENDPOINT
    price = FREE

    def __init__(
        self, model: ModelSource, *, label: str | None = None, max_batch: int = 64, fit: Fit | None = None
    ) -> None:
        self.model = model
        self.label = label or model.ref
        self.world: Literal["sandbox", "real"] = "sandbox" if model.world == "sandbox" else "real"
        self.max_batch = max_batch
        self._fit = fit or Fit()
        self._dropped: set[str] = set()
        self._loaded: Loaded | None = None

    @property
    def dropped(self) -> tuple[str, ...]:
        """The settings that were left out of requests because only servers know them."""
        return tuple(sorted(self._dropped))

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The request: the model by its digest, so that an answer is replayed for these weights alone.

        Raises UsageError for a JSON schema or a reasoning effort that may not be dropped.
        """
        self._dropped |= self._fit.fitted(ask, _ACCEPTS, self.label).dropped
        body: dict[str, Any] = {
            "model": self.model.digest,
            "messages": wire_messages(ask.messages),
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "max_tokens": ask.sampling.max_tokens,
            "seed": ask.sampling.seed or 0,
            "draw": ask.draw,
        }
        # Named only where they are asked for: the keys of all other requests stay what they were.
        if ask.sampling.stop:
            body["stop"] = list(ask.sampling.stop)
        if ask.sampling.logprobs is not None:
            body["logprobs"] = ask.sampling.logprobs
        return body

    def bound(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """No token is shorter than a byte; the template adds a few to each message."""
        written = sum(len(m["content"].encode("utf-8")) for m in body["messages"])
        return written + _TURN_TOKENS * (len(body["messages"]) + 1), int(body["max_tokens"])

    def read(self, raw: bytes) -> Reading:
        """The answer in a reply of `send_batch`."""
        body = json_object(raw)
        try:
            whole, finish, usage = str(body["text"]), str(body["finish_reason"]), body["usage"]
            tokens = Tokens(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
            logprobs = _logprobs(body.get("logprobs"))
        except (KeyError, TypeError, ValueError):
            raise Retryable("bad_envelope", "not a reply of a local model") from None
        reasoning, text = split_thinking(whole)
        outcome = outcome_of(text, cut=finish != "stop", reasoned=bool(reasoning))
        return Reading(text, outcome, finish, self.label, tokens, reasoning=reasoning, logprobs=logprobs)

    def send_batch(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """The replies, in the order of the bodies. Raises EnvironmentFault where the folder makes no
        model."""
        if self._loaded is None:
            self._loaded = load_model(self.model.path)
        fit_threads(self._loaded.model.num_parameters())
        with quiet():
            return answer_all(self._loaded, bodies)

    def close(self) -> None:
        """Frees the model and its memory; the next batch loads it again."""
        if self._loaded is None:
            return
        import torch

        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _logprobs(entries: Any) -> tuple[TokenLogprob, ...] | None:
    if entries is None:
        return None
    return tuple(
        TokenLogprob(
            str(entry["token"]),
            float(entry["logprob"]),
            tuple((str(token), float(value)) for token, value in entry["top"]),
        )
        for entry in entries
    )
