"""The table of what models accept: complete for the SDKs' models, dated like theirs, strict about its own form."""

from __future__ import annotations

import inspect
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from anthropic.resources.messages.messages import DEPRECATED_MODELS
from anthropic.types import model as anthropic_models
from openai.types.shared import chat_model

from zephyrctl.errors import UsageError
from zephyrctl.providers.hosted import capabilities
from zephyrctl.providers.hosted.capabilities import (
    MESSAGES,
    SERVER,
    accepted,
    nearest,
    overridden,
    retirement,
    table_date,
)

TODAY = date(2026, 11, 22)
NO_TEXT = re.compile(r"audio")


def test_the_table_is_of_its_date() -> None:
    assert table_date() == TODAY


@pytest.mark.parametrize("name", get_args(chat_model.ChatModel))
def test_every_chat_model_of_the_sdk_is_known_or_retired(name: str) -> None:
    end = retirement("openai", name)
    if not NO_TEXT.search(name) and not (end and end.on <= TODAY):
        assert accepted("openai", name) is not None


def announced() -> dict[str, date]:
    """The shutdown dates in the SDK's own text, by model."""
    text = inspect.getsource(chat_model).split("Deprecated values")[1]
    found = {}
    for item in re.split(r"\n\s*- (?=\")", text):
        day = re.search(r"shutdown\s+date:\s+(\d{4}-\d\d-\d\d)", item)
        if day:
            names = re.findall(r'"([^"]+)"', item.split("Announced")[0])
            found |= {name: date.fromisoformat(day[1]) for name in names}
    return found


def test_the_days_on_which_openai_retires_models() -> None:
    days = {name: day for name, day in announced().items() if not NO_TEXT.search(name)}
    assert len(days) > 60
    ours = {name: end.on for name in days if (end := retirement("openai", name))}
    assert ours == days


def test_the_days_on_which_anthropic_retires_models() -> None:
    for name, text in DEPRECATED_MODELS.items():
        day = datetime.strptime(re.sub(r"(\d)(st|nd|rd|th)", r"\1", text), "%B %d, %Y").date()
        end = retirement("anthropic", name)
        assert end is not None, name
        assert end.on == day, name


def test_every_model_of_anthropics_sdk_is_known_or_retired() -> None:
    named = list(get_args(get_args(anthropic_models.Model)[0]))
    assert len(named) > 15
    for name in named:
        end = retirement("anthropic", name)
        assert accepted("anthropic", name) or (end and end.on <= TODAY), name


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_what_follows_a_retired_model_is_served(vendor: str) -> None:
    for end in capabilities._retired(vendor).values():
        assert accepted(vendor, end.use) is not None, end.use
        assert retirement(vendor, end.use) is None, end.use


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("gpt-4o", "temperature", "yes"),
        ("gpt-4o-2024-08-06", "schema", True),
        ("gpt-4", "schema", False),
        ("gpt-4", "limit", "max_tokens"),
        ("gpt-5-nano", "limit", "max_completion_tokens"),
        ("gpt-4-turbo", "context", 128000),
        ("o3-2025-04-16", "temperature", "no"),
        ("gpt-5-mini", "efforts", ("minimal", "low", "medium", "high")),
        ("gpt-5.4-2026-03-05", "default_effort", "none"),
        ("gpt-5.6-sol", "temperature", "unless_reasoning"),
        ("gpt-5.6-luna", "default_effort", "medium"),
        ("gpt-6.1-sol", "reasoning", "always"),
        ("gpt-6.1-terra", "reasoning", "optional"),
        ("gpt-6.9-nova", "unsure", True),
        ("gpt-5.2-pro-2025-12-11", "api", "responses"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "temperature", "yes"),
        ("GPT-4O", "temperature", "yes"),
    ],
)
def test_rows_of_openai(model: str, field: str, value: Any) -> None:
    found = accepted("openai", model)
    assert found is not None
    assert getattr(found, field) == value


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("claude-haiku-4-5-20251001", "temperature", "yes"),
        ("claude-haiku-4-5", "one_of", True),
        ("claude-haiku-4-5", "efforts", ()),
        ("claude-opus-4-6", "temperature", "yes"),
        ("claude-opus-4-7", "temperature", "no"),
        ("claude-opus-5", "efforts", ("low", "medium", "high", "xhigh", "max")),
        ("claude-opus-5-5", "reasoning", "always"),
        ("claude-fable-5-2", "top_p", "no"),
        ("claude-sonnet-5-5", "seed", False),
    ],
)
def test_rows_of_anthropic(model: str, field: str, value: Any) -> None:
    found = accepted("anthropic", model)
    assert found is not None
    assert found.api == "messages"
    assert getattr(found, field) == value


def test_models_that_nobody_knows() -> None:
    for vendor, name in [
        ("openai", "gpt-7"),
        ("openai", "gpt-test"),
        ("anthropic", "claude-6"),
        ("openai", "gpt-4ox"),
    ]:
        assert accepted(vendor, name) is None
    assert "gpt-5.6" in nearest("openai", "gpt-5.7-sol") or "gpt-6-sol" in nearest("openai", "gpt-5.7-sol")
    assert retirement("openai", "gpt-6-sol") is None


def test_every_row_has_known_fields_alone() -> None:
    table = yaml.safe_load(
        (Path(capabilities.__file__).with_name("capabilities.yaml")).read_text(encoding="utf-8")
    )
    for vendor in ("openai", "anthropic"):
        for family, row in table[vendor]["families"].items():
            assert set(row) <= set(SERVER.__dataclass_fields__), family
            made = accepted(vendor, family)
            assert made is not None
            assert made.default_effort is None or made.default_effort in made.efforts, family
            assert (made.reasoning == "none") == (not made.efforts) or "1-" in family, family
            assert "none" not in made.efforts or made.reasoning == "optional", family


def test_a_project_can_say_what_its_endpoint_takes() -> None:
    said = {
        "seed": False,
        "temperature": False,
        "top_p": "unless_reasoning",
        "schema": True,
        "system": "none",
        "limit": "max_completion_tokens",
        "efforts": "low, high",
        "default_effort": "low",
    }
    made = overridden(SERVER, said, "endpoints.lab")
    assert (made.seed, made.temperature, made.top_p, made.system) == (False, "no", "unless_reasoning", "none")
    assert (made.limit, made.efforts) == ("max_completion_tokens", ("low", "high"))
    assert overridden(MESSAGES, {}, "x") is MESSAGES


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ({"sed": True}, "no 'sed'", "did you mean seed?"),
        ({"api": "chat"}, "no 'api'", "temperature"),
        ({"seed": "yes"}, "seed is true or false", ""),
        ({"temperature": "maybe"}, "temperature is yes or no", ""),
        ({"system": True}, "system is system or", ""),
        ({"limit": "max"}, "limit is max_tokens or", ""),
    ],
)
def test_a_project_that_says_it_wrongly(said: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        overridden(SERVER, said, "zephyrctl.yaml: endpoints.lab")
    assert "endpoints.lab" in caught.value.message
    assert hint in str(caught.value.hint)
