"""Preference losses: laws that hold for every pair, settings that are refused, functions from outside."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl import losses
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.losses import NAMES, LossSpec, PairLogprobs, loss_inputs, make_loss

PAIR = st.tuples(*[st.floats(-2000, 0)] * 4, st.integers(1, 900), st.integers(1, 900))
law = settings(deadline=None, max_examples=40)
BETA = st.sampled_from([0.01, 0.1, 0.5, 2.0])
SPECS = {
    "sigmoid": LossSpec(),
    "cdpo": LossSpec(label_smoothing=0.2),
    "sigmoid per token": LossSpec(length_normalised=True),
    "sigmoid + nll": LossSpec(nll_weight=1.0),
    "ipo": LossSpec(names=("ipo",)),
    "hinge": LossSpec(names=("hinge",)),
    "robust": LossSpec(names=("robust",), label_smoothing=0.1),
    "apo_zero": LossSpec(names=("apo_zero",)),
    "apo_down": LossSpec(names=("apo_down",)),
    "simpo": LossSpec(names=("simpo",), beta=2.0),
    "three": LossSpec(names=("sigmoid", "ipo", "simpo"), weights=(0.5, 0.25, 2)),
}
every_loss = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def _pairs(rows: list[tuple[float, ...]], *, reference: bool = True) -> PairLogprobs:
    columns: list[Any] = [torch.tensor(list(c), dtype=torch.float64) for c in zip(*rows, strict=True)]
    for column in columns[:2]:
        column.requires_grad_()
    return PairLogprobs(*columns) if reference else PairLogprobs(*columns[:2], None, None, *columns[4:])


def test_the_names_are_those_promised() -> None:
    assert set(NAMES) == {"sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "simpo"}


@every_loss
@law
@given(rows=st.lists(PAIR, min_size=2, max_size=5))
def test_a_pair_has_the_same_loss_in_any_company(spec: LossSpec, rows: list[tuple[float, ...]]) -> None:
    loss = make_loss(spec)
    together = loss(_pairs(rows))
    alone = torch.cat([loss(_pairs([row])) for row in rows])
    assert together.shape == (len(rows),)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@every_loss
@law
@given(rows=st.lists(PAIR, min_size=1, max_size=4))
def test_losses_and_gradients_are_finite(spec: LossSpec, rows: list[tuple[float, ...]]) -> None:
    pairs = _pairs(rows)
    total = make_loss(spec)(pairs).sum()
    total.backward()
    for value in (total, pairs.chosen.grad, pairs.rejected.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("simpo", "sigmoid + nll", "three")])
@law
@given(row=PAIR, shift=st.floats(-50, 50))
def test_only_the_log_ratio_counts(name: str, row: tuple[float, ...], shift: float) -> None:
    loss = make_loss(SPECS[name])
    moved = (row[0] + shift, row[1] - shift, row[2] + shift, row[3] - shift, *row[4:])
    torch.testing.assert_close(loss(_pairs([row])), loss(_pairs([moved])), rtol=1e-6, atol=1e-6)


@law
@given(row=PAIR, beta=BETA)
def test_which_way_each_loss_pulls(row: tuple[float, ...], beta: float) -> None:
    def slopes(name: str, **more: Any) -> tuple[float, float]:
        pairs = _pairs([row])
        make_loss(LossSpec(names=(name,), beta=beta, **more))(pairs).sum().backward()
        return float(pairs.chosen.grad), float(pairs.rejected.grad)

    for name in ("sigmoid", "hinge", "apo_zero", "simpo"):
        chosen, rejected = slopes(name)
        assert chosen <= 0, name
        assert rejected >= 0, name
    chosen, rejected = slopes("robust", label_smoothing=0.1)
    assert chosen <= 0
    assert rejected >= 0
    assert slopes("apo_down")[1] >= 0


@law
@given(row=PAIR, beta=BETA, share=st.floats(0.01, 0.45))
def test_robust_is_dpo_on_average_over_flipped_labels(
    row: tuple[float, ...], beta: float, share: float
) -> None:
    flipped = (row[1], row[0], row[3], row[2], row[5], row[4])
    robust = make_loss(LossSpec(names=("robust",), beta=beta, label_smoothing=share))
    mean = (1 - share) * robust(_pairs([row])) + share * robust(_pairs([flipped]))
    torch.testing.assert_close(mean, make_loss(LossSpec(beta=beta))(_pairs([row])), rtol=1e-6, atol=1e-6)


@law
@given(share=st.floats(0.01, 0.45), beta=BETA)
def test_smoothed_dpo_wants_the_margin_of_the_noise(share: float, beta: float) -> None:
    margin = math.log((1 - share) / share) / beta
    pairs = _pairs([(margin, 0.0, 0.0, 0.0, 5, 5)])
    make_loss(LossSpec(beta=beta, label_smoothing=share))(pairs).sum().backward()
    assert float(pairs.chosen.grad) == pytest.approx(0, abs=1e-9)


@law
@given(row=PAIR, beta=BETA)
def test_ipo_wants_a_margin_per_token(row: tuple[float, ...], beta: float) -> None:
    wanted = row[4] * (1 / (2 * beta) + (row[1] - row[3]) / row[5]) + row[2]
    loss = make_loss(LossSpec(names=("ipo",), beta=beta))(_pairs([(wanted, *row[1:])]))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_simpo_by_hand() -> None:
    loss = make_loss(LossSpec(names=("simpo",), beta=2.0, simpo_gamma=0.5))
    pairs = _pairs([(-10.0, -30.0, 0.0, 0.0, 5, 10)], reference=False)
    assert loss(pairs).item() == pytest.approx(math.log1p(math.exp(-(2.0 * (-2.0 + 3.0) - 1.0))))


@every_loss
def test_gradients_are_those_of_the_values(spec: LossSpec) -> None:
    rows = [(-20.0, -33.0, -21.0, -30.0, 9, 11), (-7.0, -5.0, -6.5, -6.0, 4, 2)]
    fixed = _pairs(rows)
    loss = make_loss(spec)

    def of(chosen: Any, rejected: Any) -> Any:
        return loss(
            PairLogprobs(
                chosen,
                rejected,
                fixed.ref_chosen,
                fixed.ref_rejected,
                fixed.chosen_tokens,
                fixed.rejected_tokens,
            )
        )

    assert torch.autograd.gradcheck(of, (fixed.chosen, fixed.rejected))


@pytest.mark.parametrize(
    ("name", "start"),
    [("sigmoid", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("ipo", 25.0),
     ("apo_zero", 1.0), ("apo_down", 1.0), ("sigmoid per token", math.log(2)), ("simpo", None),
     ("sigmoid + nll", None), ("three", None)],
)  # fmt: skip
def test_where_training_starts(name: str, start: float | None) -> None:
    loss = make_loss(SPECS[name])
    assert loss.starts_at == (None if start is None else pytest.approx(start, abs=1e-12))
    if start is not None:
        equal = _pairs([(-31.0, -12.0, -31.0, -12.0, 7, 3)])
        assert loss(equal).item() == pytest.approx(start, abs=1e-12)


def test_a_combination_is_the_weighted_sum() -> None:
    rows = [(-20.0, -33.0, -21.0, -30.0, 9, 11), (-7.0, -5.0, -6.5, -6.0, 4, 2)]
    parts = [make_loss(LossSpec(names=(n,)))(_pairs(rows)) for n in ("sigmoid", "ipo", "simpo")]
    nll = torch.tensor([20 / 9, 7 / 4], dtype=torch.float64)
    both = make_loss(LossSpec(names=("sigmoid", "ipo", "simpo"), weights=(0.5, 0.25, 2), nll_weight=0.3))
    torch.testing.assert_close(
        both(_pairs(rows)), 0.5 * parts[0] + 0.25 * parts[1] + 2 * parts[2] + 0.3 * nll
    )


def test_rewards_and_scores() -> None:
    pairs = _pairs([(-10.0, -30.0, -12.0, -31.0, 5, 10), (-4.0, -3.0, -4.0, -3.0, 2, 2)])
    rewards = make_loss(LossSpec()).rewards(pairs)
    assert rewards.chosen.tolist() == pytest.approx([0.2, 0.0])
    assert rewards.rejected.tolist() == pytest.approx([0.1, 0.0])
    assert not rewards.chosen.requires_grad
    scores = make_loss(LossSpec()).scores(pairs)
    assert scores["accuracy"] == 0.5  # equal rewards are no win
    assert scores["margin"] == pytest.approx(0.05)
    assert scores["loss"] == pytest.approx((math.log1p(math.exp(-0.1)) + math.log(2)) / 2)
    free = make_loss(LossSpec(names=("simpo",), beta=2.0)).rewards(pairs)
    assert free.chosen.tolist() == pytest.approx([-4.0, -4.0])


def test_a_reference_is_asked_for_where_one_is_needed() -> None:
    pairs = _pairs([(-10.0, -30.0, 0.0, 0.0, 5, 10)], reference=False)
    assert not make_loss(SPECS["simpo"]).needs_reference
    assert make_loss(SPECS["three"]).needs_reference
    for name, spec in SPECS.items():
        if make_loss(spec).needs_reference:
            with pytest.raises(UsageError, match="reference"):
                make_loss(spec)(pairs)
        else:
            assert torch.isfinite(make_loss(spec)(pairs)).all(), name


@every_loss
def test_settings_travel_as_json_and_between_processes(spec: LossSpec) -> None:
    assert LossSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"names": ()}, "no loss"),
        ({"names": ("sigmoid", "sigmoid")}, "twice"),
        ({"names": ("sigmoid", "ipo"), "weights": (1.0,)}, "1 loss_weights for 2 losses"),
        ({"weights": (0.0,)}, "above 0"),
        ({"weights": (math.nan,)}, "above 0"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"nll_weight": -1.0}, "nll_weight"),
        ({"simpo_gamma": math.nan}, "simpo_gamma"),
        ({"names": ("hinge",), "label_smoothing": 0.1}, "changes nothing in hinge"),
        ({"names": ("robust",)}, "is sigmoid"),
        ({"names": ("ipo", "simpo"), "length_normalised": True}, "changes nothing in ipo"),
    ],
)
def test_settings_that_fit_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LossSpec(**values)


OWN = """
import torch

def fine(pairs, spec):
    return -torch.nn.functional.logsigmoid(spec.beta * pairs.margin())

def free(pairs, spec):
    return -pairs.chosen + pairs.rejected

free.needs_reference = False

def centred(pairs, spec):
    margin = pairs.margin()
    return -(margin - margin.mean())

def summed(pairs, spec):
    return pairs.margin().sum()

def detached(pairs, spec):
    return pairs.margin().detach()

def listed(pairs, spec):
    return pairs.margin().tolist()

def broken(pairs, spec):
    return pairs.nothing

def leaves(pairs, spec):
    raise SystemExit(3)

def narrow(pairs, spec):
    return pairs.margin().half()

def alone(pairs):
    return pairs.margin()

def unlikely(pairs, spec):
    return pairs.rejected

unlikely.needs_reference = False
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_function_of_ones_own(own: Path) -> None:
    row = (-20.0, -33.0, -21.0, -30.0, 9, 11)
    spec = LossSpec(names=(f"{own}:fine",), beta=0.3)
    loss = make_loss(spec)
    assert loss.needs_reference
    assert loss.starts_at is None
    torch.testing.assert_close(loss(_pairs([row])), make_loss(LossSpec(beta=0.3))(_pairs([row])))
    assert not make_loss(LossSpec(names=(f"{own}:free",))).needs_reference
    assert make_loss(LossSpec(names=(f"{own}:unlikely",)))(_pairs([row])).tolist() == [-33.0]


def test_what_a_function_gets_is_per_token_where_asked(own: Path) -> None:
    loss = make_loss(LossSpec(names=(f"{own}:free",), length_normalised=True))
    assert loss(_pairs([(-20.0, -33.0, 0.0, 0.0, 10, 11)])).tolist() == [pytest.approx(2.0 - 3.0)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("centred", "beside another pair"),
        ("summed", "shape"),
        ("detached", "no gradient"),
        ("listed", "list"),
        ("broken", "own.py:.*AttributeError"),
        ("leaves", "own.py:.*SystemExit: 3"),
        ("narrow", "float16"),
        ("alone", "own.py.*TypeError"),
    ],
)
def test_functions_that_would_spoil_a_run_are_refused_before_it(own: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_loss(LossSpec(names=(f"{own}:{name}",)))


def test_the_code_of_a_loss_is_an_input(own: Path) -> None:
    spec = LossSpec(names=("sigmoid", f"{own}:fine"))
    [(role, digest)] = loss_inputs(spec)
    assert role == "loss:own.py:fine"
    assert digest.startswith("sha256:")
    assert loss_inputs(LossSpec()) == []
    own.write_text(OWN + "# another\n")
    assert loss_inputs(spec) != [(role, digest)]


def test_a_loss_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("twice", f"{__name__}:twice", losses.LOSSES)
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [entry] if group == losses.LOSSES else []
    )
    monkeypatch.setattr(EntryPoint, "load", lambda self: twice)
    row = (-20.0, -33.0, -21.0, -30.0, 9, 11)
    loss = make_loss(LossSpec(names=("twice",)))
    torch.testing.assert_close(loss(_pairs([row])), 2 * make_loss(LossSpec())(_pairs([row])))
    assert loss_inputs(LossSpec(names=("twice",)))[0][0] == "loss:twice"


def twice(pairs: PairLogprobs, spec: LossSpec) -> Any:
    return 2 * losses.sigmoid(pairs, spec)


def test_unknown_names_and_files() -> None:
    with pytest.raises(UsageError, match="no loss 'sigmod'") as failed:
        make_loss(LossSpec(names=("sigmod",)))
    assert failed.value.hint is not None
    assert "did you mean sigmoid? one of sigmoid, ipo" in failed.value.hint
    with pytest.raises(RefNotFound):
        make_loss(LossSpec(names=("./nowhere.py:fn",)))
