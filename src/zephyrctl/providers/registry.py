"""From a model's name to the provider that asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyrctl.errors import UsageError
from zephyrctl.modelspec import ModelSpec, parse_model
from zephyrctl.money import FREE, Price
from zephyrctl.project import ModelSection
from zephyrctl.providers.base import AnyProvider
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.anthropic_batch import BatchedAnthropic
from zephyrctl.providers.hosted.capabilities import (
    MESSAGES,
    RESPONSES,
    SERVER,
    Accepts,
    accepted,
    nearest,
    overridden,
    retirement,
    table_date,
)
from zephyrctl.providers.hosted.endpoints import VENDORS, Vendor, named_place, vendor_place
from zephyrctl.providers.hosted.fitting import Fit
from zephyrctl.providers.hosted.keys import api_key
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.openai_batch import BatchedOpenAI, BatchedResponses
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.providers.prices import known_price
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.providers.site import Site

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource

_Adapter = type[OpenAIProvider | ResponsesProvider | AnthropicProvider]
_ADAPTERS: dict[str, _Adapter] = {
    "openai": OpenAIProvider,
    "responses": ResponsesProvider,
    "anthropic": AnthropicProvider,
}
_VENDORS: dict[str, _Adapter] = {
    "openai": BatchedOpenAI,
    "responses": BatchedResponses,
    "anthropic": BatchedAnthropic,
}
"""The same with the batch API that the vendors have."""
_ANY_SERVER = {"openai": SERVER, "responses": RESPONSES, "anthropic": MESSAGES}
"""What a server may accept of whose models nothing is known, by what it speaks."""

_UNSURE = (
    "what {name} accepts was not established on {date}: only what is sure to be taken is sent "
    "(models: {{{name}: {{like: NAME}}}} in zephyrctl.yaml says otherwise)"
)


def check_key(spec: ModelSpec, site: Site | None = None) -> None:
    """Nothing, where the model needs no key or the key is there.

    Raises AuthError saying what to set; asks nobody.
    """
    site = site or Site()
    vendor = VENDORS.get(spec.where)
    if site.replay_only:
        return
    if vendor:
        api_key(vendor.key_variable, vendor.key_example)
    elif spec.where == "endpoint":
        section = site.project.endpoints.get(spec.endpoint or "")
        if section is not None and section.key_env and not section.offline:
            api_key(section.key_env, "…")


def make_provider(
    spec: ModelSpec, *, model: ModelSource | None = None, site: Site | None = None
) -> AnyProvider:
    """The provider for a model; `model` is the located folder of a local one.

    Raises AuthError before all else when a key is missing; UsageError for an unknown role, endpoint or model, and
    for a retired one.
    """
    site = site or Site()
    check_key(spec, site)
    if spec.where == "sandbox":
        return SandboxProvider(spec.name)
    if spec.where in VENDORS:
        return _at_vendor(spec, site)
    if spec.where == "endpoint":
        return _at_endpoint(spec, site)
    if model is None:
        raise UsageError(f"'{spec.text}' names a model on this machine, but no folder was found for it")
    return _on_this_machine(model, site)


def _on_this_machine(model: ModelSource, site: Site) -> AnyProvider:
    """A vLLM of its own where the project names one, else transformers; always these for the sandbox's models, which
    are done before a server is up."""
    fit = Fit(site.may_drop, site.effort)
    if site.project.vllm is None or model.world == "sandbox":
        from zephyrctl.providers.local.provider import LocalProvider

        return LocalProvider(model, fit=fit)
    from zephyrctl.providers.local.vllm import ServedModel

    named = [endpoint.key_env for endpoint in site.project.endpoints.values() if endpoint.key_env]
    return ServedModel(model, site.project.vllm, fit=fit, hidden=frozenset(named))


def _at_vendor(spec: ModelSpec, site: Site) -> HostedProvider:
    vendor = VENDORS[spec.where]
    place = vendor_place(vendor, spec.name)
    section = site.project.models.get(spec.name)
    accepts = _like(section, site.project.origin, spec.name) or accepted(vendor.kind, spec.name)
    notices: tuple[str, ...] = ()
    if place.official and section is None and not site.replay_only:
        notices = _not_retired(vendor, spec.name, site)
        if accepts is None:
            raise _unknown(vendor, spec.name)
        if accepts.unsure:
            notices += (_UNSURE.format(name=spec.name, date=table_date()),)
    accepts = accepts or _ANY_SERVER[vendor.kind]
    cls = _VENDORS["responses" if accepts.api == "responses" else vendor.kind]
    price = _listed(section, site.project.origin)
    if price is None and place.official:
        price = known_price(vendor.kind, spec.name, site.today)
    return cls(
        spec.name,
        place,
        accepts=accepts,
        fit=Fit(site.may_drop, site.effort),
        price=price or site.price,
        notices=notices,
    )


def _at_endpoint(spec: ModelSpec, site: Site) -> HostedProvider:
    name, origin = spec.endpoint or "", site.project.origin
    endpoint, place = named_place(site.project, name)
    section = site.project.models.get(spec.name)
    accepts = _like(section, origin, spec.name) or _ANY_SERVER[endpoint.api]
    price = _listed(section, origin) or (
        endpoint.price.price(f"{origin}: endpoints.{name}.price") if endpoint.price else None
    )
    return _ADAPTERS[endpoint.api](
        spec.name,
        place,
        accepts=overridden(accepts, endpoint.accepts, f"{origin}: endpoints.{name}"),
        fit=Fit(site.may_drop, site.effort),
        price=price or (FREE if place.offline else site.price),
        label=f"{name}:{spec.name}",
    )


def _like(section: ModelSection | None, origin: str, name: str) -> Accepts | None:
    """What a model accepts that the project file declares to be like a known one."""
    if section is None:
        return None
    like = parse_model(section.like)
    found = accepted(like.where, like.name) if like.where in VENDORS else None
    if found is None:
        raise UsageError(
            f"{origin}: models.{name}.like: '{section.like}' is not in the table of {table_date()} either",
            hint="name a model of OpenAI or Anthropic that it knows: gpt-5.6-sol, claude-opus-5, gpt-4o …",
        )
    return found


def _listed(section: ModelSection | None, origin: str) -> Price | None:
    if section is None or section.price is None:
        return None
    return section.price.price(f"{origin}: models")


def _unknown(vendor: Vendor, name: str) -> UsageError:
    near = nearest(vendor.kind, name)
    hint = f"near it: {', '.join(near)}; " if near else ""
    return UsageError(
        f"'{name}' is not among the models of {vendor.kind} known on {table_date()}",
        hint=f"{hint}if it is new, say in zephyrctl.yaml which one it is like: models: {{{name}: {{like: NAME}}}}",
    )


def _not_retired(vendor: Vendor, name: str, site: Site) -> tuple[str, ...]:
    """What to tell of a model that will be retired. Raises UsageError for one that is."""
    end = retirement(vendor.kind, name)
    if end is None:
        return ()
    if end.on <= site.today:
        raise UsageError(
            f"{vendor.kind} retired {name} on {end.on}",
            hint=f"use {end.use}, or an endpoint of your own that still serves it: NAME:{name} with NAME under "
            "endpoints: in zephyrctl.yaml",
        )
    return (f"{vendor.kind} retires {name} on {end.on}; {end.use} follows it",)
