"""Preference losses against TRL's own code, on the same log-probabilities.

TRL computes them inside its trainers. Their methods run here on a stand-in that holds only what they read: a model that
gives the log-probabilities of the test, and settings. One pair at a time, TRL's mean over the batch is that pair's
loss.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zephyrctl.losses import LossSpec, PairLogprobs, make_loss

PAIRS = 6
WIDTH = 9
"""Tokens of the longest answer; each is preceded by a prompt of one token."""


def _columns() -> dict[str, Any]:
    """Log-probabilities per token of both answers of each pair, `[2 * PAIRS, WIDTH]`, and what goes with them."""
    made = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, WIDTH + 1, (2 * PAIRS,), generator=made)
    mask = torch.arange(WIDTH) < lengths[:, None]
    tokens = -8 * torch.rand(2 * PAIRS, WIDTH, generator=made, dtype=torch.float64) * mask
    noise = 6 * torch.randn(2 * PAIRS, generator=made, dtype=torch.float64)
    return {"tokens": tokens.requires_grad_(), "mask": mask, "reference": tokens.detach().sum(1) + noise}


def _ours(spec: LossSpec, columns: dict[str, Any]) -> Any:
    sums, mask, reference = columns["tokens"].sum(1), columns["mask"].sum(1), columns["reference"]
    return make_loss(spec)(PairLogprobs(*sums.chunk(2), *reference.chunk(2), *mask.chunk(2)))


class _Accelerator:
    device = "cpu"

    def gather(self, value: Any) -> Any:
        return value

    gather_for_metrics = gather


def _dpo_trainer(names: list[str], spec: LossSpec) -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=_Accelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=spec.beta, loss_types=names,
        loss_weights=list(spec.weights), label_smoothing=spec.label_smoothing, use_weighting=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def _trl_dpo(
    names: list[str], spec: LossSpec, columns: dict[str, Any], pair: int
) -> tuple[Any, dict[str, Any]]:
    """TRL's DPO loss of one pair, and the metrics it notes."""
    from trl import DPOTrainer

    both = [pair, pair + PAIRS]
    tokens = columns["tokens"][both]
    mask = torch.cat([torch.zeros(2, 1, dtype=torch.long), columns["mask"][both].long()], dim=1)

    def model(**kwargs: Any) -> Any:
        assert kwargs["fused_lm_head"]
        zeros = torch.zeros_like(tokens)
        return SimpleNamespace(log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": columns["reference"][[pair]],
        "ref_rejected_logps": columns["reference"][[pair + PAIRS]],
    }
    trainer = _dpo_trainer(names, spec)
    return DPOTrainer._compute_loss(trainer, model, inputs, False), trainer._metrics["train"]


def _require_equal(ours: Any, theirs: Any, columns: dict[str, Any]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    [mine] = torch.autograd.grad(ours.sum(), columns["tokens"])
    [other] = torch.autograd.grad(theirs.sum(), columns["tokens"])
    torch.testing.assert_close(mine * columns["mask"], other * columns["mask"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("theirs", "values"),
    [
        ("sigmoid", {}),
        ("ipo", {"names": ("ipo",)}),
        ("hinge", {"names": ("hinge",)}),
        ("robust", {"names": ("robust",), "label_smoothing": 0.1}),
        ("apo_zero", {"names": ("apo_zero",)}),
        ("apo_down", {"names": ("apo_down",)}),
        ("sigmoid_norm", {"length_normalised": True}),
        # TRL's DPO no longer smooths `sigmoid`; of one pair, `aot_unpaired` is the same formula.
        ("aot_unpaired", {"label_smoothing": 0.2}),
    ],
)
def test_equal_to_trl(theirs: str, values: dict[str, Any], beta: float) -> None:
    spec, columns = LossSpec(**values, beta=beta), _columns()
    found = torch.stack([_trl_dpo([theirs], spec, columns, pair)[0] for pair in range(PAIRS)])
    _require_equal(_ours(spec, columns), found, columns)


def test_a_weighted_sum_with_nll_is_trls_sum_with_sft() -> None:
    columns = _columns()
    spec = LossSpec(names=("sigmoid", "apo_zero"), weights=(0.8, 0.3), nll_weight=0.5)
    theirs = LossSpec(names=("sigmoid", "apo_zero", "sft"), weights=(0.8, 0.3, 0.5))
    names = ["sigmoid", "apo_zero", "sft"]
    found = torch.stack([_trl_dpo(names, theirs, columns, pair)[0] for pair in range(PAIRS)])
    _require_equal(_ours(spec, columns), found, columns)


def test_rewards_are_trls() -> None:
    columns, spec = _columns(), LossSpec()
    sums = columns["tokens"].sum(1)
    pairs = PairLogprobs(*sums.chunk(2), *columns["reference"].chunk(2), *columns["mask"].sum(1).chunk(2))
    rewards = make_loss(spec).rewards(pairs)
    for pair in range(PAIRS):
        metrics = _trl_dpo(["sigmoid"], spec, columns, pair)[1]
        assert metrics["rewards/chosen"] == [pytest.approx(rewards.chosen[pair].item())]
        assert metrics["rewards/rejected"] == [pytest.approx(rewards.rejected[pair].item())]


@pytest.mark.parametrize(("beta", "share"), [(2.0, 0.5), (10.0, 0.3), (2.5, 0.0)])
def test_simpo_is_equal_to_trls_cpo(beta: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

    columns = _columns()
    spec = LossSpec(names=("simpo",), beta=beta, simpo_gamma=share)
    trainer = SimpleNamespace(
        beta=beta, alpha=0.0, loss_type="simpo", simpo_gamma=share * beta, label_smoothing=0.0,
        accelerator=_Accelerator(),
    )  # fmt: skip
    means = columns["tokens"].sum(1) / columns["mask"].sum(1)
    found = CPOTrainer.cpo_loss(trainer, *means.chunk(2))
    _require_equal(_ours(spec, columns), found[0], columns)
    sums = columns["tokens"].sum(1)
    rewards = make_loss(spec).rewards(
        PairLogprobs(*sums.chunk(2), None, None, *columns["mask"].sum(1).chunk(2))
    )
    torch.testing.assert_close(rewards.chosen, found[1])
