"""Settings that a model refuses: left out where that is allowed, an error otherwise, never sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.providers.base import Ask, Sampling, Schema
from zephyrctl.providers.hosted.capabilities import SERVER, Accepts
from zephyrctl.providers.hosted.fitting import Fit
from zephyrctl.records import Message

QUESTION = (Message(role="user", content="Add 2 and 3."),)
SCHEMA = Schema("verdict", {"type": "object"})
NOTHING = Accepts(
    temperature="no",
    top_p="no",
    logprobs="no",
    seed=False,
    stop="no",
    schema=False,
    reasoning="none",
    efforts=(),
)
SWITCHED = Accepts(
    temperature="unless_reasoning",
    top_p="unless_reasoning",
    logprobs="unless_reasoning",
    stop="unless_reasoning",
    efforts=("none", "low"),
    default_effort="low",
)


def ask(schema: Schema | None = None, **settings: Any) -> Ask:
    return Ask(QUESTION, Sampling(**{"temperature": 1.0, **settings}), schema=schema)


def test_what_is_accepted_goes_out_as_it_is() -> None:
    whole = ask(
        SCHEMA, temperature=0.2, top_p=0.8, max_tokens=9, seed=3, stop=("x",), logprobs=2, effort="low"
    )
    fitted = Fit().fitted(whole, SERVER, "m")
    assert (fitted.temperature, fitted.top_p, fitted.max_tokens, fitted.seed) == (0.2, 0.8, 9, 3)
    assert (fitted.stop, fitted.logprobs, fitted.effort, fitted.schema) == (("x",), 2, "low", SCHEMA)
    assert fitted.dropped == frozenset()


REFUSED: list[tuple[str, dict[str, Any], Schema | None]] = [
    ("temperature", {"temperature": 0.0}, None),
    ("top_p", {"top_p": 0.9}, None),
    ("seed", {"seed": 0}, None),
    ("stop", {"stop": ("a",)}, None),
    ("logprobs", {"logprobs": 0}, None),
    ("effort", {"effort": "low"}, None),
    ("schema", {}, SCHEMA),
]


@pytest.mark.parametrize(("setting", "settings", "schema"), REFUSED, ids=[r[0] for r in REFUSED])
def test_each_setting_is_dropped_by_leave_alone(
    setting: str, settings: dict[str, Any], schema: Schema | None
) -> None:
    with pytest.raises(UsageError, match=f"openai:m does not take {setting}=") as caught:
        Fit().fitted(ask(schema, **settings), NOTHING, "openai:m")
    assert f"--set may_drop=[{setting}]" in str(caught.value.hint)
    fitted = Fit(frozenset({setting})).fitted(ask(schema, **settings), NOTHING, "openai:m")
    assert fitted.dropped == {setting}
    assert getattr(fitted, setting) in (None, ())


def test_the_only_value_a_model_has_is_left_out_without_a_word() -> None:
    fitted = Fit().fitted(ask(temperature=1.0, top_p=1.0), NOTHING, "m")
    assert (fitted.temperature, fitted.top_p, fitted.dropped) == (None, None, frozenset())


def test_settings_that_hold_only_while_the_model_does_not_reason() -> None:
    free = Fit().fitted(ask(temperature=0.0, effort="none", logprobs=1, stop=("x",)), SWITCHED, "m")
    assert (free.temperature, free.top_p, free.logprobs, free.effort) == (0.0, 1.0, 1, "none")
    assert Fit(effort="none").fitted(ask(temperature=0.0), SWITCHED, "m").temperature == 0.0
    for effort in (None, "low"):
        with pytest.raises(UsageError, match="while it reasons") as caught:
            Fit().fitted(ask(temperature=0.0, effort=effort), SWITCHED, "m")
        assert "?effort=none" in str(caught.value.hint)


def test_an_effort_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match="effort=max") as caught:
        Fit().fitted(ask(effort="max"), SWITCHED, "m")
    assert "it takes none, low" in str(caught.value.hint)
    with pytest.raises(UsageError, match="effort=max"):
        Fit(effort="max").fitted(ask(), SWITCHED, "m")


def test_the_stages_effort_is_for_models_that_reason() -> None:
    fit = Fit(effort="low")
    assert fit.fitted(ask(), SWITCHED, "m").effort == "low"
    assert fit.fitted(ask(effort="none"), SWITCHED, "m").effort == "none"
    plain = fit.fitted(ask(), NOTHING, "m")
    assert (plain.effort, plain.dropped) == (None, frozenset())
    assert Fit().fitted(ask(effort="none"), NOTHING, "m").effort is None


@pytest.mark.parametrize(
    ("temperature", "top_p", "sent"),
    [(1.0, 1.0, (1.0, None)), (0.0, 1.0, (0.0, None)), (1.0, 0.9, (None, 0.9)), (0.5, 0.9, None)],
)
def test_one_of_temperature_and_top_p(temperature: float, top_p: float, sent: Any) -> None:
    one, both = Accepts(one_of=True), ask(temperature=temperature, top_p=top_p)
    if sent is None:
        with pytest.raises(UsageError, match="together"):
            Fit().fitted(both, one, "m")
        sent = (0.5, None)
    fitted = Fit(frozenset({"top_p"})).fitted(both, one, "m")
    assert (fitted.temperature, fitted.top_p) == sent


TAKES = st.sampled_from(["yes", "no", "unless_reasoning"])


@given(
    accepts=st.builds(
        Accepts,
        temperature=TAKES,
        top_p=TAKES,
        one_of=st.booleans(),
        logprobs=TAKES,
        seed=st.booleans(),
        stop=TAKES,
        schema=st.booleans(),
        reasoning=st.sampled_from(["none", "optional", "always"]),
        efforts=st.sampled_from([(), ("low",), ("none", "low")]),
        default_effort=st.sampled_from([None, "none", "low"]),
    ),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([0.5, 1.0]),
    seed=st.sampled_from([None, 0]),
    logprobs=st.sampled_from([None, 0]),
    effort=st.sampled_from([None, "none", "low", "max"]),
    may_drop=st.frozensets(st.sampled_from(["temperature", "top_p", "seed", "logprobs", "effort"])),
)
def test_nothing_refused_is_sent_and_nothing_vanishes(
    accepts: Accepts, may_drop: frozenset[str], **settings: Any
) -> None:
    try:
        fitted = Fit(may_drop).fitted(ask(**settings), accepts, "m")
    except UsageError:
        return
    assert fitted.dropped <= may_drop
    defaults = {"temperature": 1.0, "top_p": 1.0, "seed": None, "logprobs": None, "effort": None}
    for name, default in defaults.items():
        sent, asked = getattr(fitted, name), settings[name]
        assert sent is None or sent == asked
        if sent is None and asked != default and name not in fitted.dropped:
            assert name == "effort"
            assert asked == "none"
    assert fitted.temperature is None or accepts.temperature != "no"
    assert not (accepts.one_of and fitted.temperature is not None and fitted.top_p is not None)
    assert fitted.effort is None or fitted.effort in accepts.efforts
