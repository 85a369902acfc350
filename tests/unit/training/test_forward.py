"""One forward pass: logits only where a token is predicted, whatever wraps the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zephyrctl.training.forward import logits_only_at, output_head, read_predicted, sums_by_owner
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.model import load_model
from zephyrctl.training.settings import TrainingConfig

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
KEEP = torch.tensor([0, 2, 7])


class Wrapped(torch.nn.Module):
    """As DDP and DeepSpeed wrap a model."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.fixture(params=["plain", "wrapped", "wrapped twice", "adapters", "adapters wrapped"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Any:
    made = load_model(tiny, config=TrainingConfig(lora="adapters" in request.param, dtype="fp32")).eval()
    for _ in range({"wrapped": 1, "wrapped twice": 2, "adapters wrapped": 1}.get(request.param, 0)):
        made = Wrapped(made)
    return made


def test_logits_are_made_only_where_they_are_wanted(model: Any) -> None:
    with torch.no_grad():
        whole = model(input_ids=IDS).logits
        with logits_only_at(model, KEEP):
            found = model(input_ids=IDS).logits
        after = model(input_ids=IDS).logits
    assert found.shape == (3, whole.shape[-1])
    torch.testing.assert_close(found, whole.flatten(0, 1)[KEEP], rtol=0, atol=1e-6)
    assert torch.equal(after, whole)


def test_the_head_is_whole_again_after_an_error(model: Any) -> None:
    with pytest.raises(IndexError), logits_only_at(model, torch.tensor([99])):
        model(input_ids=IDS)
    assert model(input_ids=IDS).logits.shape[:2] == IDS.shape


def test_the_head_is_that_of_the_language_model(model: Any) -> None:
    inner = model
    while isinstance(inner, Wrapped):
        inner = inner.module
    assert output_head(model) is inner.get_output_embeddings()


def test_what_a_model_says_of_the_wanted_tokens(tiny: Path) -> None:
    model = load_model(tiny).eval()
    wanted = model(input_ids=IDS).logits.flatten(0, 1)[KEEP].log_softmax(-1)
    read_inside(model)
    targets = torch.tensor([6, 8, 4])
    found = read_predicted(model, {"input_ids": IDS, "keep": KEEP, "targets": targets, "owner": None})
    expected = wanted.gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-6)
    assert found.entropy.shape == found.top.shape == (3,)
    found.logprobs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_positions_reach_the_model(tiny: Path) -> None:
    model = load_model(tiny).eval()
    read_inside(model)
    batch = {"input_ids": IDS[:1], "keep": torch.tensor([3]), "targets": torch.tensor([9])}
    with torch.no_grad():
        whole = read_predicted(model, batch).logprobs
        begun_anew = read_predicted(model, {**batch, "position_ids": torch.tensor([[0, 1, 0, 1]])}).logprobs
        alone = read_predicted(model, {**batch, "input_ids": IDS[:1, 2:], "keep": torch.tensor([1])}).logprobs
    torch.testing.assert_close(begun_anew, alone, rtol=0, atol=1e-6)
    assert float((whole - alone).abs()) > 1e-4


def test_sums_by_owner() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    found = sums_by_owner(values, torch.tensor([2, 0, 2, 0]), 4)
    assert found.tolist() == [10.0, 0.0, 5.0, 0.0]
    found[2].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert (
        sums_by_owner(values.detach().bfloat16(), torch.zeros(4, dtype=torch.long), 1).dtype == torch.float32
    )
