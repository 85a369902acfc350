"""What becomes of the settings of a request that its model does not accept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zephyrctl.errors import UsageError
from zephyrctl.providers.base import Ask, Schema
from zephyrctl.providers.hosted.capabilities import Accepts, Takes


@dataclass(frozen=True)
class Fitted:
    """The settings of one request; None and empty = left out. `dropped` = left out although asked for."""

    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    effort: str | None
    schema: Schema | None
    system: str
    dropped: frozenset[str]


@dataclass(frozen=True)
class Fit:
    """The rule: a setting that a model refuses is left out where `may_drop` names it, else it is an error.

    `effort` = reasoning effort for models that have one, where an ask names none.
    """

    may_drop: frozenset[str] = frozenset()
    effort: str | None = None

    def fitted(self, ask: Ask, accepts: Accepts, model: str) -> Fitted:
        """The settings that go out.

        A refused setting at the only value that the model has (temperature 1, top_p 1) is left out without a word.
        Raises UsageError naming model, setting and value.
        """
        sampling, refused = ask.sampling, dict[str, Any]()
        effort = self._effort(sampling.effort, accepts, refused)
        reasons = (effort or accepts.default_effort) != "none"

        def taken(takes: Takes) -> bool:
            return takes == "yes" or (takes == "unless_reasoning" and not reasons)

        temperature, top_p = _nucleus(
            sampling.temperature if taken(accepts.temperature) else None,
            sampling.top_p if taken(accepts.top_p) else None,
            accepts.one_of,
        )
        if temperature is None and sampling.temperature != 1.0:
            refused["temperature"] = sampling.temperature
        if top_p is None and sampling.top_p != 1.0:
            refused["top_p"] = sampling.top_p
        if sampling.seed is not None and not accepts.seed:
            refused["seed"] = sampling.seed
        if sampling.stop and not taken(accepts.stop):
            refused["stop"] = list(sampling.stop)
        if sampling.logprobs is not None and not taken(accepts.logprobs):
            refused["logprobs"] = sampling.logprobs
        if ask.schema is not None and not accepts.schema:
            refused["schema"] = ask.schema.name
        for setting, value in refused.items():
            if setting not in self.may_drop:
                raise _refusal(model, setting, value, accepts, self.may_drop)
        return Fitted(
            max_tokens=sampling.max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=None if "seed" in refused else sampling.seed,
            stop=() if "stop" in refused else sampling.stop,
            logprobs=None if "logprobs" in refused else sampling.logprobs,
            effort=effort,
            schema=None if "schema" in refused else ask.schema,
            system=accepts.system,
            dropped=frozenset(refused),
        )

    def _effort(self, asked: str | None, accepts: Accepts, refused: dict[str, Any]) -> str | None:
        """The effort to send. The stage's own one is for models that reason; one named with a model is meant."""
        effort = asked or self.effort
        if effort is None or effort in accepts.efforts:
            return effort
        if not (accepts.reasoning == "none" and effort in (self.effort, "none")):
            refused["effort"] = effort
        return None


def _nucleus(
    temperature: float | None, top_p: float | None, one_of: bool
) -> tuple[float | None, float | None]:
    """Both, or the one that is not at its default where only one of them is taken."""
    if not one_of or temperature is None or top_p is None:
        return temperature, top_p
    return (None, top_p) if temperature == 1.0 and top_p != 1.0 else (temperature, None)


def _refusal(model: str, setting: str, value: Any, accepts: Accepts, allowed: frozenset[str]) -> UsageError:
    drop = f"leave it out with --set may_drop=[{', '.join(sorted({*allowed, setting}))}]"
    if setting == "effort" and accepts.efforts:
        return UsageError(
            f"{model} does not take effort={value}", hint=f"it takes {', '.join(accepts.efforts)}; or {drop}"
        )
    if getattr(accepts, setting, None) == "unless_reasoning":
        why = f"{model} does not take {setting}={value} while it reasons"
        return UsageError(why, hint=f"{drop}, or turn its reasoning off with ?effort=none")
    if setting == "top_p" and accepts.top_p != "no":
        return UsageError(f"{model} does not take top_p={value} together with a temperature", hint=drop)
    return UsageError(f"{model} does not take {setting}={value}", hint=drop)
