"""What the judge's requests look like on the wire, and what they are estimated to take."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pytest

from zephyrctl.asking.estimate import Estimate, Range
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project
from zephyrctl.providers.base import Answer, Ask
from zephyrctl.providers.hosted.capabilities import MESSAGES, RESPONSES, SERVER, Accepts, accepted
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.providers.site import Site
from zephyrctl.records import Completion, Message, PromptRow, prompt_id
from zephyrctl.sandbox.lexicon import NOUNS
from zephyrctl.stages.gen_prefs.answered import Answered
from zephyrctl.stages.gen_prefs.judgements import takes_schema
from zephyrctl.stages.gen_prefs.judging import JudgeRater, Judging
from zephyrctl.stages.gen_prefs.tally import Tally
from zephyrctl.testing.answers import say
from zephyrctl.testing.documents import Api, document

JUDGING = Judging(42, ASPECTS, True, 0.0, 512)
KNOWN = Accepts(reasoning="none", efforts=(), context=1000)
WORDS = [word for word in NOUNS if word != "pear"][:40]
HERE = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class Stub:
    label: str
    accepts: Accepts


def sorting(word: str) -> Answered:
    """A prompt of the sandbox with four answers: right, swapped, half of it, and none."""
    prompt = [Message(role="user", content=f"Sort these words: pear {word}")]
    row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
    right = sorted(["pear", word])
    texts = (" ".join(right), " ".join(reversed(right)), right[0], "no idea")
    kept = [Completion(completion_id=f"{word}{n}", model=f"m{n}", text=text) for n, text in enumerate(texts)]
    return Answered(Seed("f:1", "train", row), kept)


def prompt_with_four() -> list[Answered]:
    prompt = [Message(role="user", content="question")]
    row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
    kept = [Completion(completion_id=f"c{n}", model=f"m{n}", text=f"text {n}") for n in range(4)]
    return [Answered(Seed("f:1", "train", row), kept)]


def test_a_schema_is_sent_to_models_that_are_known_to_follow_one() -> None:
    for server in (SERVER, RESPONSES, MESSAGES):
        assert not takes_schema(Stub("m", server))  # type: ignore[arg-type]
    assert not takes_schema(SandboxProvider("judge"))
    for accepts, takes in (
        (KNOWN, True),
        (replace(KNOWN, schema=False), False),
        (replace(KNOWN, unsure=True), False),
    ):
        assert takes_schema(Stub("m", accepts)) == takes  # type: ignore[arg-type]
    for vendor, model in (("openai", "gpt-4"), ("openai", "gpt-4o"), ("anthropic", "claude-opus-5")):
        found = accepted(vendor, model)
        assert found
        assert takes_schema(Stub(model, found)) == (model != "gpt-4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model", ["openai:gpt-4", "openai:gpt-4o", "anthropic:claude-opus-5", "box:m", "odd:m", "told:m"]
)
def test_no_request_needs_a_setting_dropped_for_the_sake_of_its_form(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef")
    endpoints = {
        "box": {"base_url": HERE},
        "odd": {"base_url": HERE, "accepts": {"seed": False, "schema": False}},
        "told": {"base_url": HERE, "accepts": {"schema": True}},
    }
    site = Site(
        project=Project.model_validate({"endpoints": endpoints}),
        may_drop=frozenset({"seed", "temperature"}),
        today=date(2026, 6, 1),
    )
    provider = make_provider(parse_model(model), site=site)
    rater = JudgeRater(Seat(parse_model(model), provider), JUDGING)
    bodies: list[dict[str, Any]] = []

    def ask(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer]:
        bodies.extend(seat.provider.wire(one) for seat, one in asks)
        return [Answer("?", "text", "stop", "m", None, "k", False) for _ in asks]

    rater.rate(prompt_with_four(), ask, Tally())
    assert len(bodies) == 16
    formed = [
        body for body in bodies if body.get("response_format") or body.get("output_config", {}).get("format")
    ]
    assert len(formed) == (16 if model in ("openai:gpt-4o", "anthropic:claude-opus-5", "told:m") else 0)


@pytest.mark.parametrize(
    "model", ["openai:gpt-4o", "anthropic:claude-opus-5", "box:m", "told:m", "answers:m"]
)
def test_a_judge_behind_every_api_is_read_and_its_replies_are_bound_by_label(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the request on the wire to ratings, with the sandbox's fair judge behind the APIs of the vendors."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef")
    endpoints = {
        "box": {"base_url": HERE},
        "told": {"base_url": HERE, "accepts": {"schema": True}},
        "answers": {"base_url": HERE, "api": "responses", "accepts": {"schema": True}},
    }
    dropped = frozenset({"seed", "temperature"})
    site = Site(project=Project.model_validate({"endpoints": endpoints}), may_drop=dropped)
    provider = make_provider(parse_model(model), site=site)
    api: Api = "responses" if model == "answers:m" else "anthropic" if "claude" in model else "openai"

    def ask(asks: Sequence[tuple[Seat, Ask]], task: str) -> list[Answer]:
        made = []
        for _, one in asks:
            body = {**provider.wire(one), "model": "fair-judge"}
            read = provider.read(json.dumps(document("ok", api, body, say("ok", body))).encode())
            made.append(Answer(read.text, read.outcome, "stop", "m", None, "k", False))
        return made

    tally = Tally()
    rater = JudgeRater(Seat(parse_model(model), provider), JUDGING)
    rated = rater.rate([sorting(word) for word in WORDS], ask, tally)
    assert tally.unscored.total() == 0
    assert tally.ratings_asked == len(WORDS) * 20
    for group in rated:
        assert group is not None
        right, others = group[0], group[1:]
        assert right.overall is not None
        assert all(other.overall is not None and other.overall < right.overall for other in others)
        assert [r.types for r in right.ratings][2:] == [[], [1, 2, 3]]
        assert all(r.value in (4, 5, None) for r in right.ratings)


def test_the_estimate_counts_judgements_and_the_repairs_they_may_need() -> None:
    def estimate(how: Judging) -> Estimate:
        sketch = Sketch()
        rater = JudgeRater(Seat(parse_model("sandbox:judge"), SandboxProvider("judge")), how)
        rater.draw(sketch, 100, Range(700, 1000, 2000), Range(7000, 10000, 20000), 4)
        return Estimate(tuple(sketch.parts))

    found = estimate(JUDGING)
    calls = {(p.purpose, p.calls, p.most) for p in found.parts}
    assert calls == {
        ("aspect", 400, 400), ("aspect repair", 8, 400), ("overall", 400, 400), ("overall repair", 8, 400)
    }  # fmt: skip
    assert found.most == 1600
    aspect = next(p for p in found.parts if p.purpose == "aspect")
    repair = next(p for p in found.parts if p.purpose == "aspect repair")
    assert repair.prompt.likely > aspect.prompt.likely > 250
    without = estimate(replace(JUDGING, repair=False, overall=False))
    assert [(p.purpose, p.calls) for p in without.parts] == [("aspect", 400)]
