"""Teachers, judges and pool members: from a model's name to something that can be asked, and what a reply is
worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.errors import UsageError
from zephyrctl.modelspec import ModelSpec, parse_model
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Failure, Sampling

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource
    from zephyrctl.artifacts.store import Store
    from zephyrctl.providers.site import Site

World = Literal["sandbox", "real"]

FAILURES = ("failed", "refusal", "filtered", "empty", "cut_off", "reasoning_cut")
"""The reasons that `trouble` gives for replies that were asked for."""

_REASONS = {
    "empty": "empty",
    "length": "cut_off",
    "reasoning_cut": "reasoning_cut",
    "refusal": "refusal",
    "filtered": "filtered",
}


def check_keys(names: Sequence[str], site: Site) -> list[ModelSpec]:
    """The models that `names` stand for, in order, once every key they need is known to be there.

    Raises AuthError for a missing key before UsageError for a name that cannot be read: keys are checked
    first.
    """
    from zephyrctl.providers.registry import check_key

    specs: list[ModelSpec] = []
    unreadable: UsageError | None = None
    for name in names:
        try:
            spec = parse_model(name)
        except UsageError as error:
            unreadable = unreadable or error
            continue
        check_key(spec, site=site)
        specs.append(spec)
    if unreadable:
        raise unreadable
    return specs


@dataclass(frozen=True)
class Seat:
    """A model ready to be asked. `model` is its folder where it runs on this machine."""

    spec: ModelSpec
    provider: AnyProvider
    model: ModelSource | None = None

    @property
    def label(self) -> str:
        """What rows and manifests call it."""
        return self.provider.label

    @property
    def world(self) -> World:
        """Whether its words belong to the sandbox or to the real world."""
        return self.provider.world

    def sampling(self, *, temperature: float, max_tokens: int, seed: int, top_p: float = 1.0) -> Sampling:
        """The stage's sampling settings, overridden by those given with the model's name
        (`gpt-4?temperature=0`)."""
        settings = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens} | self.spec.params
        effort = settings.get("effort")
        return Sampling(
            temperature=float(settings["temperature"]),
            top_p=float(settings["top_p"]),
            max_tokens=int(settings["max_tokens"]),
            seed=seed,
            effort=None if effort is None else str(effort),
        )

    def inputs(self, role: str) -> list[InputRef]:
        """The model's digest as an input of the step, where it is a model of ours; nothing for a remote
        one."""
        if self.model is None:
            return []
        return [InputRef(role=role, ref=self.model.ref, digest=self.model.digest, kind="model")]

    def close(self) -> None:
        """Free what the model holds on this machine: memory, a server that was started for it."""
        if isinstance(self.provider, Closing):
            self.provider.close()


@runtime_checkable
class Closing(Protocol):
    """A provider that holds memory or a server of its own until it is closed."""

    def close(self) -> None:
        """Free it; asked again, the provider takes it anew."""
        ...


def take_seat(store: Store, spec: ModelSpec, site: Site) -> Seat:
    """The model behind `spec`, found and ready. Raises RefNotFound, IntegrityError, AuthError, MissingExtra, or
    UsageError for a model that is not known or no longer there."""
    from zephyrctl.providers.registry import make_provider

    if spec.where in ("folder", "artifact", "hub"):
        from zephyrctl.training.locate import locate_model

        model = locate_model(store, spec)
        return Seat(spec, make_provider(spec, model=model, site=site), model)
    return Seat(spec, make_provider(spec, site=site))


def joint_world(worlds: Iterable[str]) -> World:
    """`sandbox` as soon as anything of the sandbox takes part, so that it can never pass for real data."""
    return "sandbox" if "sandbox" in set(worlds) else "real"


def trouble(reply: Answer | Failure) -> tuple[str, str] | None:
    """Why a reply cannot become data, as (reason, detail); None for a reply that can."""
    if isinstance(reply, Failure):
        if reply.reason == UNPAID:
            return UNPAID, "not in the ledger"
        return "failed", f"{reply.reason}: {reply.detail}"
    if reply.outcome != "text":
        return _REASONS[reply.outcome], f"finish reason {reply.finish_reason}"
    return None if reply.text.strip() else ("empty", "nothing but white space")
