"""From a model's name to the provider that asks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyrctl.errors import UsageError
from zephyrctl.modelspec import ModelSpec
from zephyrctl.providers import anthropic, openai
from zephyrctl.providers.base import AnyProvider
from zephyrctl.providers.sandbox import SandboxProvider

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource


def check_key(spec: ModelSpec) -> None:
    """Nothing, where the model needs no key or the key is there.

    Raises AuthError saying what to set; asks nobody.
    """
    if spec.where == "openai":
        openai.check_key()
    elif spec.where == "anthropic":
        anthropic.check_key()


def make_provider(spec: ModelSpec, *, model: ModelSource | None = None) -> AnyProvider:
    """The provider for a model; `model` is the located folder of a local one.

    Raises AuthError before all else when a key is missing; UsageError for an unknown role or endpoint.
    """
    check_key(spec)
    if spec.where == "openai":
        return openai.OpenAIProvider(spec.name)
    if spec.where == "anthropic":
        return anthropic.AnthropicProvider(spec.name)
    if spec.where == "sandbox":
        return SandboxProvider(spec.name)
    if spec.where == "endpoint":
        raise UsageError(
            f"no endpoint named '{spec.endpoint}' in zephyrctl.yaml",
            hint="providers: openai:NAME, anthropic:NAME, local:FOLDER, sandbox:ROLE",
        )
    if model is None:
        raise UsageError(f"'{spec.text}' names a model on this machine, but no folder was found for it")
    from zephyrctl.providers.local import LocalProvider

    return LocalProvider(model)
