"""Preference losses: log-probabilities of pairs in, one loss per pair out. Pure functions.

The formulas write m for the margin (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)) of the chosen answer
y_w over the rejected one y_l, b for beta and s for the logistic function. `docs/losses.md` says when to use which.
Every loss is per pair and looks at no other pair, so a result does not depend on how a batch is split.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from zephyrctl.errors import UsageError
from zephyrctl.plugins import Loaded, load_function, stdout_aside

LOSSES = "zephyrctl.losses"
"""The group of entry points under which packages offer losses."""

LossFunction = Callable[["PairLogprobs", "LossSpec"], Any]


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities of the answers of some pairs given their prompts: tensors `[pairs]`, in nats, summed over the
    answer's tokens. The reference's are None where none has spoken; `*_tokens` count the answers' tokens."""

    chosen: Any
    rejected: Any
    ref_chosen: Any | None
    ref_rejected: Any | None
    chosen_tokens: Any
    rejected_tokens: Any

    def per_token(self) -> PairLogprobs:
        """The same, each divided by its answer's number of tokens (so that the counts become 1)."""
        chosen, rejected = self.chosen_tokens.clamp(min=1), self.rejected_tokens.clamp(min=1)
        return PairLogprobs(
            self.chosen / chosen,
            self.rejected / rejected,
            None if self.ref_chosen is None else self.ref_chosen / chosen,
            None if self.ref_rejected is None else self.ref_rejected / rejected,
            chosen / chosen,
            rejected / rejected,
        )

    def chosen_ratio(self) -> Any:
        """log pi(y_w) - log ref(y_w), `[pairs]`. Raises UsageError without a reference."""
        return self.chosen - _there(self.ref_chosen)

    def rejected_ratio(self) -> Any:
        """log pi(y_l) - log ref(y_l), `[pairs]`. Raises UsageError without a reference."""
        return self.rejected - _there(self.ref_rejected)

    def margin(self) -> Any:
        """How much more the policy prefers the chosen answer than the reference does, in nats, `[pairs]`."""
        return self.chosen_ratio() - self.rejected_ratio()


@dataclass(frozen=True)
class LossSpec:
    """What to minimise: the losses `names` added with `weights` (none given: 1 each), plus `nll_weight` times the mean
    negative log-probability per token of each chosen answer. Raises UsageError for settings that fit no loss named."""

    names: tuple[str, ...] = ("sigmoid",)
    weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    """The share of pairs taken to be the wrong way round, from 0 to below 0.5."""
    simpo_gamma: float = 0.5
    """simpo's target margin as a share of beta (gamma / beta)."""
    nll_weight: float = 0.0
    length_normalised: bool = False
    """Log-probabilities are divided by the answer's number of tokens first; ipo and simpo always do so."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights) or (1.0,) * len(self.names))
        _check(self)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**dataclasses.asdict(self), "names": list(self.names), "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LossSpec:
        """The settings that `as_dict` gave."""
        return cls(**values)


@dataclass(frozen=True)
class Rewards:
    """The implicit rewards of both answers, `[pairs]`, without gradient: beta times what the losses compare."""

    chosen: Any
    rejected: Any


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss that a `LossSpec` describes; made by `make_loss`."""

    spec: LossSpec
    parts: tuple[tuple[float, _Part], ...]

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses compares with a reference model."""
        return any(part.needs_reference for _, part in self.parts)

    @property
    def starts_at(self) -> float | None:
        """The loss of every pair while policy and reference are equal (ln 2 for sigmoid); None where it depends on the
        pair."""
        return _start(self)

    def __call__(self, pairs: PairLogprobs) -> Any:
        """The loss of each pair, `[pairs]`, differentiable in `pairs.chosen` and `pairs.rejected`."""
        total: Any = 0.0
        for weight, part in self.parts:
            total = total + weight * part(pairs, self.spec)
        if self.spec.nll_weight:
            total = total - self.spec.nll_weight * pairs.chosen / pairs.chosen_tokens.clamp(min=1)
        return total

    def rewards(self, pairs: PairLogprobs) -> Rewards:
        """The rewards for metrics: beta * log(pi / ref), or beta * log pi where no loss needs a reference; per token
        where every loss looks at means."""
        if all(part.per_token or self.spec.length_normalised for _, part in self.parts):
            pairs = pairs.per_token()
        if self.needs_reference:
            chosen, rejected = pairs.chosen_ratio(), pairs.rejected_ratio()
        else:
            chosen, rejected = pairs.chosen, pairs.rejected
        return Rewards((self.spec.beta * chosen).detach(), (self.spec.beta * rejected).detach())

    def scores(self, pairs: PairLogprobs) -> dict[str, float]:
        """Means over the pairs: `loss`, `accuracy` (the chosen answer has the higher reward; equal counts as wrong) and
        `margin` of the rewards."""
        rewards = self.rewards(pairs)
        return {
            "loss": float(self(pairs).detach().mean()),
            "accuracy": float((rewards.chosen > rewards.rejected).double().mean()),
            "margin": float((rewards.chosen - rewards.rejected).mean()),
        }


def make_loss(spec: LossSpec) -> PreferenceLoss:
    """The loss that `spec` describes, with functions from outside loaded and tried on two made-up pairs.

    Raises RefNotFound (no such file) and UsageError (unknown name, a function that does not give one finite
    differentiable loss per pair, or lets pairs influence each other).
    """
    return PreferenceLoss(
        spec, tuple((w, _part(n, spec)) for n, w in zip(spec.names, spec.weights, strict=True))
    )


def loss_inputs(spec: LossSpec) -> list[tuple[str, str]]:
    """`(role, digest)` of every loss that comes from outside, in order: what enters the step key beside its name.

    Raises as `plugins.load_function` does.
    """
    loaded = [_load(name) for name in spec.names if name not in _OURS]
    return [(f"loss:{one.label}", one.digest) for one in loaded]


def sigmoid(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """-log s(b m): DPO, Rafailov et al. 2023, equation 7. With label smoothing e, -(1 - e) log s(b m) - e log s(-b m):
    cDPO, Mitchell 2023 (A note on DPO with noisy preferences & relationship to IPO)."""
    e = spec.label_smoothing
    margin = spec.beta * pairs.margin()
    return -(1 - e) * _log_sigmoid(margin) - (e * _log_sigmoid(-margin) if e else 0.0)


def robust(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """(-(1 - e) log s(b m) + e log s(-b m)) / (1 - 2 e): unbiased where a share e of the labels is flipped. Ray
    Chowdhury et al. 2024 (Provably Robust DPO). It can be negative."""
    e = spec.label_smoothing
    margin = spec.beta * pairs.margin()
    return (-(1 - e) * _log_sigmoid(margin) + e * _log_sigmoid(-margin)) / (1 - 2 * e)


def hinge(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """max(0, 1 - b m): Zhao et al. 2023 (SLiC), Liu et al. 2023 (RSO), there with the reference's log-ratio."""
    return (1 - spec.beta * pairs.margin()).relu()


def ipo(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """(m - 1 / (2 b))^2 with m from log-probabilities per token: Azar et al. 2023, equation 17, b being their tau. The
    division by length is not in the paper; TRL has it after asking the authors, and it is kept."""
    return (pairs.margin() - 1 / (2 * spec.beta)) ** 2


def apo_zero(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """(1 - s(b r_w)) + s(b r_l), r being each answer's log-ratio: raises the chosen answer and lowers the rejected one.
    D'Oosterlinck et al. 2024, equation 7."""
    return (-spec.beta * pairs.chosen_ratio()).sigmoid() + (spec.beta * pairs.rejected_ratio()).sigmoid()


def apo_down(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """s(b r_w) + (1 - s(b m)): lowers both answers, the rejected one more. D'Oosterlinck et al. 2024, equation 8."""
    return (spec.beta * pairs.chosen_ratio()).sigmoid() + (-spec.beta * pairs.margin()).sigmoid()


def simpo(pairs: PairLogprobs, spec: LossSpec) -> Any:
    """-log s(b (p_w - p_l) - gamma), p being log-probabilities per token: Meng et al. 2024, equation 6, with gamma =
    `simpo_gamma` * b."""
    return -_log_sigmoid(spec.beta * (pairs.chosen - pairs.rejected - spec.simpo_gamma))


@dataclass(frozen=True)
class _Part:
    """One loss by name, and what it looks at."""

    name: str
    function: LossFunction
    needs_reference: bool = True
    per_token: bool = False
    """It always compares log-probabilities per token."""

    def __call__(self, pairs: PairLogprobs, spec: LossSpec) -> Any:
        return self.function(pairs.per_token() if self.per_token or spec.length_normalised else pairs, spec)


_OURS = {
    part.name: part
    for part in (
        _Part("sigmoid", sigmoid),
        _Part("ipo", ipo, per_token=True),
        _Part("hinge", hinge),
        _Part("robust", robust),
        _Part("apo_zero", apo_zero),
        _Part("apo_down", apo_down),
        _Part("simpo", simpo, needs_reference=False, per_token=True),
    )
}
NAMES = tuple(_OURS)
"""The losses that come with the package."""
_SMOOTHED = ("sigmoid", "robust")


def _check(spec: LossSpec) -> None:
    """Raises UsageError for the first thing that is wrong with the settings."""
    known = [_OURS[name] for name in spec.names if name in _OURS]
    all_known = len(known) == len(spec.names)
    if not spec.names:
        raise UsageError("no loss is named", hint="--loss sigmoid")
    if len(set(spec.names)) < len(spec.names):
        raise UsageError(f"a loss is named twice: {', '.join(spec.names)}", hint="once, with a larger weight")
    if len(spec.weights) != len(spec.names):
        raise UsageError(
            f"{len(spec.weights)} loss_weights for {len(spec.names)} losses ({', '.join(spec.names)})",
            hint="one weight for each loss, or none at all",
        )
    if not all(0 < w < math.inf for w in spec.weights):
        raise UsageError(f"loss_weights must be above 0: {', '.join(f'{w:g}' for w in spec.weights)}")
    if not 0 < spec.beta < math.inf:
        raise UsageError(f"beta must be above 0, not {spec.beta:g}")
    if not 0 <= spec.label_smoothing < 0.5:
        raise UsageError(f"label_smoothing must be from 0 to below 0.5, not {spec.label_smoothing:g}")
    if not 0 <= spec.simpo_gamma < math.inf or not 0 <= spec.nll_weight < math.inf:
        raise UsageError("simpo_gamma and nll_weight must be 0 or more")
    if spec.label_smoothing and all_known and not set(spec.names) & set(_SMOOTHED):
        raise UsageError(
            f"label_smoothing changes nothing in {' + '.join(spec.names)}",
            hint=f"it belongs to {' and '.join(_SMOOTHED)}; leave it out",
        )
    if "robust" in spec.names and not spec.label_smoothing:
        raise UsageError(
            "robust without label_smoothing is sigmoid",
            hint="--set label_smoothing=0.1 where a tenth of the pairs is the wrong way round, or --loss sigmoid",
        )
    if spec.length_normalised and all_known and all(part.per_token for part in known):
        raise UsageError(
            f"length_normalised changes nothing in {' + '.join(spec.names)}: log-probabilities per token are compared"
            " there anyway",
            hint="leave it out",
        )


def _part(name: str, spec: LossSpec) -> _Part:
    if name in _OURS:
        return _OURS[name]
    loaded = _load(name)
    function: LossFunction = partial(_call, loaded)
    part = _Part(name, function, needs_reference=bool(getattr(loaded.function, "needs_reference", True)))
    _try(part, spec)
    return part


def _load(name: str) -> Loaded:
    try:
        return load_function(name, LOSSES)
    except UsageError as error:
        if ".py" in name:
            raise
        near = difflib.get_close_matches(name, _OURS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"there is no loss '{name}': {error.message}",
            hint=f"{meant}one of {', '.join(_OURS)}, or your own: ./file.py:function",
        ) from None


def _call(loaded: Loaded, pairs: PairLogprobs, spec: LossSpec) -> Any:
    """The result of a function from outside. Raises UsageError where it fails or gives anything but one number a
    pair."""
    import torch

    try:
        with stdout_aside():
            found = loaded.function(pairs, spec)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        said = (str(error).strip().splitlines() or [""])[0]
        hint = "it is called as fn(pairs, spec)" if isinstance(error, TypeError) else None
        raise UsageError(f"{loaded.place_of(error)}: {type(error).__name__}: {said}", hint=hint) from error
    wide = (torch.float32, torch.float64)
    if not isinstance(found, torch.Tensor) or found.shape != pairs.chosen.shape or found.dtype not in wide:
        said = (
            f"shape {list(found.shape)}, {found.dtype}"
            if isinstance(found, torch.Tensor)
            else type(found).__name__
        )
        raise UsageError(
            f"{loaded.label} gives {said} for {len(pairs.chosen)} pairs",
            hint="fn(pairs, spec) gives a tensor of float32 with one loss per pair",
        )
    return found


def _try(part: _Part, spec: LossSpec) -> None:
    """Tries a function from outside on two made-up pairs, together and alone."""
    import torch

    columns = [[-20.0, -35.0], [-24.0, -30.0], [-21.0, -33.0], [-23.0, -31.0], [10.0, 14.0], [12.0, 15.0]]

    def made(rows: slice) -> PairLogprobs:
        tensors: list[Any] = [torch.tensor(c[rows], dtype=torch.float64) for c in columns]
        if not part.needs_reference:
            tensors[2:4] = [None, None]
        for side in tensors[:2]:  # some losses look at one side alone
            side.requires_grad_()
        return PairLogprobs(*tensors)

    both = made(slice(0, 2))
    together = part(both, spec)
    alone = torch.cat([part(made(slice(i, i + 1)), spec) for i in (0, 1)])
    if not together.requires_grad or not bool(torch.isfinite(together).all()):
        raise UsageError(
            f"{part.name} gives losses that are not finite or carry no gradient: {together.tolist()}",
            hint="compute with the tensors of `pairs`, without detach, item or numpy",
        )
    if not torch.allclose(together, alone, rtol=1e-6, atol=1e-9):
        raise UsageError(
            f"{part.name} gives a pair another loss beside another pair ({together.tolist()}) than alone"
            f" ({alone.tolist()}): results would depend on how a batch is split",
            hint="no mean, sum or sort over the pairs",
        )


def _start(loss: PreferenceLoss) -> float | None:
    import torch

    ours = all(part.name in _OURS and part.needs_reference for _, part in loss.parts)
    if not ours or loss.spec.nll_weight:
        return None
    nothing = torch.zeros(1, dtype=torch.float64)
    return float(loss(PairLogprobs(nothing, nothing, nothing, nothing, nothing + 1, nothing + 1)))


def _there(reference: Any | None) -> Any:
    if reference is None:
        raise UsageError(
            "this loss compares with a reference, and there are no log-probabilities of one",
            hint="simpo needs none",
        )
    return reference


def _log_sigmoid(values: Any) -> Any:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)
