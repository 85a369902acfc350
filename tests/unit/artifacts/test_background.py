"""Cards of rows state teachers and terms, judge, decontamination, cost and limits, of the rows behind them too."""

from __future__ import annotations

from typing import Any

from zephyrctl.artifacts.background import sections
from zephyrctl.artifacts.card import card
from zephyrctl.artifacts.manifest import Manifest

TEACHER = {
    "provider": "openai", "origin": "api.openai.com", "model": "gpt-6.1-sol", "calls": 1200, "cost_usd": 3.5,
    "tokens": {"prompt": 9000, "completion": 800}, "served": ["gpt-6.1-sol-0901"], "dropped": ["seed"],
}  # fmt: skip


def manifest(kind: str, **values: Any) -> Manifest:
    body: dict[str, Any] = {
        "kind": kind, "kind_version": 1, "name": kind, "world": "real", "files": [], "stage": "gen-prefs",
        "stage_version": 1, "config": {}, "seed": 1, "step_key": "k", "content_digest": "sha256:1",
    }  # fmt: skip
    return Manifest.model_validate(body | values)


FEEDBACK = manifest(
    "feedback",
    teachers=[TEACHER],
    counts={"ratings": {"asked": 200, "rated": 180, "not_applicable": 10, "unscored": {"no rating": 10}}},
    audit={"judge": "gpt-6.1-sol", "sentences": ["it likes the first place"]},
    decontamination={"suites": [{"name": "mt-bench", "items": 80}], "compared": 50, "hits": 3, "dropped": 2},
)


def told(made: list[tuple[str, list[str]]]) -> dict[str, list[str]]:
    return dict(made)


def test_pairs_tell_what_their_feedback_knows() -> None:
    found = told(sections(manifest("prefs"), [("feedback@v1", FEEDBACK)]))
    assert "restrict the use of output" in found["Terms of the teachers"][0]
    assert (
        "gpt-6.1-sol rated 200 times (feedback@v1): 95.0% of the ratings could be read" in found["Judge"][0]
    )
    assert found["Judge"][1] == "it likes the first place"
    assert found["Decontamination"] == [
        "50 prompts of feedback@v1 were compared with mt-bench (80 items): 3 overlap, 2 were dropped"
    ]
    assert found["Cost"] == ["feedback@v1: 1,200 calls, $3.50"]
    assert len(found["Limits"]) == 2
    text = card(manifest("prefs"), [("feedback@v1", FEEDBACK)])
    assert "served by gpt-6.1-sol-0901; not sent: seed; of feedback@v1" in text


def test_prompts_that_nobody_compared_say_so() -> None:
    found = told(sections(manifest("sft"), []))
    assert found["Decontamination"] == ["the prompts were not compared with any evaluation suite"]
    assert "Terms of the teachers" not in found
    assert "Cost" not in found


def test_a_price_that_is_not_known_is_not_a_zero() -> None:
    unpriced = manifest(
        "sft", teachers=[{**TEACHER, "cost_usd": None, "origin": "endpoint:box", "provider": "x"}]
    )
    found = told(sections(unpriced, []))
    assert found["Cost"] == ["this version: 1,200 calls, $0.00, and calls whose price is not known"]
    assert "named endpoint" in found["Terms of the teachers"][0]


def test_models_and_evaluations_have_no_such_sections() -> None:
    assert sections(manifest("model"), [("feedback@v1", FEEDBACK)]) == []
