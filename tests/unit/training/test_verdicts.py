"""The sentences at the end of an epoch: each is said when it is true and not when it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training.verdicts import DISPLACED, FEW_ENDS, FEWER_ENDS, RISE, verdicts


def bad(task: str, epochs: list[dict[str, Any]], before: dict[str, float] | None = None) -> list[str]:
    return [one.text for one in verdicts(task, epochs, before or {}) if one.bad]


def test_nothing_measured_nothing_said() -> None:
    assert verdicts("sft", [], {}) == []
    assert verdicts("dpo", [{"epoch": 1.0}], {}) == []


def test_a_good_epoch_is_one_line() -> None:
    (only,) = verdicts(
        "dpo",
        [{"epoch": 1.0, "test/loss": 0.61, "test/accuracy": 0.72, "test/margin": 0.4, "test/eos_rate": 0.98,
          "test/logps/chosen": -80.0, "test/chosen_tokens": 60.0, "test/kl": 0.02}],
        {"test/logps/chosen": -79.0, "test/eos_rate": 0.97},
    )  # fmt: skip
    assert not only.bad
    for words in (
        "epoch 1:",
        "loss 0.6100",
        "accuracy 72.0%",
        "-80.0 nats",
        "98.0% of the answers",
        "0.0200",
    ):
        assert words in only.text


def test_overfitting_names_the_better_epoch() -> None:
    epochs = [{"epoch": e, "test/loss": loss} for e, loss in ((1.0, 1.5), (2.0, 1.2), (3.0, 1.4))]
    assert bad("sft", epochs[:2]) == []
    (text,) = bad("sft", epochs)
    assert "from 1.2000 (epoch 2) to 1.4000" in text
    assert "--keep-epochs" in text
    assert bad("sft", [epochs[1], {"epoch": 3.0, "test/loss": 1.2 * (1 + RISE / 2)}]) == []


def test_endings() -> None:
    assert bad("sft", [{"epoch": 1.0, "test/eos_rate": FEW_ENDS}]) == []
    (text,) = bad("sft", [{"epoch": 1.0, "test/eos_rate": FEW_ENDS - 0.01}])
    assert "not learned to stop (more --epochs" in text
    assert "sft has taught" in bad("dpo", [{"epoch": 1.0, "test/eos_rate": 0.1}], {"test/eos_rate": 0.1})[0]
    (text,) = bad("dpo", [{"epoch": 1.0, "test/eos_rate": 0.8}], {"test/eos_rate": 0.9})
    assert "before training 90.0%" in text
    assert bad("dpo", [{"epoch": 1.0, "test/eos_rate": 0.9 - FEWER_ENDS / 2}], {"test/eos_rate": 0.9}) == []


def test_displacement_in_plain_words() -> None:
    scores = {"epoch": 1.0, "test/logps/chosen": -90.0, "test/chosen_tokens": 50.0}
    (text,) = bad("dpo", [scores], {"test/logps/chosen": -80.0})
    assert "likelihood displacement" in text
    assert "factor of 10^4 each" in text
    assert bad("dpo", [scores | {"test/chosen_tokens": 101.0}], {"test/logps/chosen": -80.0}) == []
    assert bad("sft", [scores], {"test/logps/chosen": -80.0}) == []
    assert "10^434" in bad("dpo", [scores], {"test/logps/chosen": 910.0})[0]


@given(now=st.floats(-1e4, 0), before=st.floats(-1e4, 0), tokens=st.floats(1, 1e3))
def test_displacement_is_warned_of_exactly_where_chosen_answers_fell(
    now: float, before: float, tokens: float
) -> None:
    scores = {"epoch": 1.0, "test/logps/chosen": now, "test/chosen_tokens": tokens}
    warned = bool(bad("dpo", [scores], {"test/logps/chosen": before}))
    assert warned == (before - now >= DISPLACED * tokens)


@pytest.mark.parametrize(
    ("task", "scores", "before", "words"),
    [
        ("dpo", {"test/accuracy": 0.5}, {}, "by chance"),
        ("dpo", {"test/kl": 1.5}, {}, "1.50 nats a token away"),
        ("sft", {"test/answer_tokens": 45.0}, {"test/answer_tokens": 30.0}, "from 30 to 45 tokens"),
        ("dpo", {"test/accuracy": 0.51, "test/kl": 0.9, "test/answer_tokens": 44.0}, {"test/answer_tokens": 30.0}, ""),
    ],
)  # fmt: skip
def test_the_others(task: str, scores: dict[str, float], before: dict[str, float], words: str) -> None:
    found = bad(task, [{"epoch": 2.0, **scores}], before)
    assert (len(found) == 1 and words in found[0]) if words else found == []
