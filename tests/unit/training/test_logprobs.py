"""Log-probabilities read from logits in pieces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.training import logprobs
from zephyrctl.training.logprobs import picked_logprobs, pieces, read_inside, read_logits
from zephyrctl.training.model import load_model


def _logits(n: int, vocabulary: int, dtype: Any) -> tuple[Any, Any, Any]:
    made = torch.Generator().manual_seed(3)
    logits = (5 * torch.randn(n, vocabulary, generator=made)).to(dtype).requires_grad_()
    ids = torch.randint(0, vocabulary, (n,), generator=made)
    return logits, ids, torch.randn(n, generator=made)


@pytest.fixture(params=[1, 4 * 97 * 3, 1 << 20], ids=["row by row", "three rows", "whole"])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(logprobs.PIECE_BYTES, "cpu", request.param)
    return int(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_picked_is_log_softmax_and_so_is_its_gradient(piece_bytes: int, dtype: Any) -> None:
    logits, ids, weights = _logits(17, 97, dtype)
    wanted = torch.log_softmax(logits.float(), dim=-1).gather(1, ids[:, None]).squeeze(1)
    [wanted_gradient] = torch.autograd.grad((weights * wanted).sum(), logits)
    found = picked_logprobs(logits, ids)
    [gradient] = torch.autograd.grad((weights * found).sum(), logits)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, wanted_gradient)


def test_metrics_from_the_same_pass(piece_bytes: int) -> None:
    logits, ids, weights = _logits(17, 97, torch.float32)
    ids[::2] = logits[::2].argmax(-1)
    found = read_logits(logits, ids)
    assert torch.equal(found.logprobs, picked_logprobs(logits, ids))
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert torch.equal(found.top, logits.argmax(-1) == ids)
    assert 9 <= int(found.top.sum()) < 17
    assert not found.entropy.requires_grad
    [gradient] = torch.autograd.grad((weights * found.logprobs).sum(), logits)
    [wanted] = torch.autograd.grad((weights * picked_logprobs(logits, ids)).sum(), logits)
    assert torch.equal(gradient, wanted)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    found = read_logits(logits, torch.tensor([1, 2]))
    assert found.logprobs.tolist() == pytest.approx([-2e4, -math.log(3)])
    assert found.entropy.tolist() == pytest.approx([0, math.log(3)])
    found.logprobs.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_ruled_out_tokens_and_no_tokens_at_all() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    found = read_logits(logits, torch.tensor([2]))
    assert found.logprobs.tolist() == pytest.approx([-math.log(2)])
    assert found.entropy.tolist() == pytest.approx([math.log(2)])
    [gradient] = torch.autograd.grad(found.logprobs.sum(), logits)
    assert gradient.tolist() == [[-0.5, 0.0, 0.5]]
    nothing = logits[:0]
    read_logits(nothing, torch.tensor([], dtype=torch.long)).logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 0.0, 0.0]]


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the bytes of the largest float32 tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32:
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return out


def test_no_float32_copy_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logprobs.PIECE_BYTES, "cpu", 40_000)
    logits, ids, weights = _logits(64, 1000, torch.bfloat16)

    def largest(function: Any) -> int:
        with _Largest() as mode:
            (weights * function(logits, ids)).sum().backward()
        return mode.bytes

    assert largest(lambda z, i: torch.log_softmax(z.float(), -1).gather(1, i[:, None])[:, 0]) == 4 * 64_000
    assert largest(picked_logprobs) <= 40_000
    assert largest(lambda z, i: read_logits(z, i).logprobs) <= 40_000


@pytest.mark.gpu
def test_memory_on_a_gpu_is_one_gradient_more_than_the_logits() -> None:
    logits = torch.randn(8192, 32_000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(0, 32_000, (8192,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    picked_logprobs(logits, ids).sum().backward()
    assert torch.cuda.max_memory_allocated() - before <= logits.nbytes + 4 * logprobs.PIECE_BYTES["cuda"]


@given(st.integers(0, 5000), st.integers(1, 300_000))
def test_pieces_are_the_rows_in_order(rows: int, vocabulary: int) -> None:
    made = pieces(torch.empty(rows, vocabulary, device="meta"))
    assert [row for piece in made for row in range(rows)[piece]] == list(range(rows))
    assert all(p.stop - p.start == 1 or 4 * vocabulary * (p.stop - p.start) <= 128 << 20 for p in made)


def test_reading_inside_the_model_is_reading_its_logits(tiny: Path) -> None:
    model = load_model(tiny).eval()
    ids = torch.tensor([[5, 6, 7, 8], [4, 3, 2, 1]])
    targets = torch.tensor([6, 7, 8, 9, 3, 2, 1, 0])
    wanted = read_logits(model(input_ids=ids).logits.flatten(0, 1), targets)
    read_inside(model)
    found = model(input_ids=ids, targets=targets)
    for name in ("logprobs", "entropy", "top"):
        assert torch.equal(found[name], getattr(wanted, name))
    assert model(input_ids=ids).logits.shape[:2] == (2, 4)  # as ever without targets
    assert model.generate(input_ids=ids[:1], max_new_tokens=1, do_sample=False).shape == (1, 5)


def test_what_is_read_is_what_trl_reads(tiny: Path) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = load_model(tiny).eval()
    ids = torch.randint(0, 250, (3, 40), generator=torch.Generator().manual_seed(1))
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=ids, fused_lm_head=True)
        ours = read_logits(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(ours.logprobs, theirs.log_probs.flatten(), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.entropy, theirs.entropy.flatten(), rtol=0, atol=1e-5)
    assert torch.equal(ours.top, theirs.is_top1.flatten())


def test_accelerate_makes_no_float32_copy_of_what_is_read_inside(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    monkeypatch.setitem(logprobs.PIECE_BYTES, "cpu", 40_000)
    model = load_model(tiny)
    read_inside(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests of this process want another one
    ids = torch.randint(0, 50, (8, 64))
    whole = 4 * ids.numel() * model.config.vocab_size

    def largest(**kwargs: Any) -> int:
        with _Largest() as mode:
            out = model(input_ids=ids, use_cache=False, **kwargs)
            (
                out["logprobs"] if kwargs else picked_logprobs(out.logits.flatten(0, 1), ids.flatten())
            ).sum().backward()
        return mode.bytes

    assert largest() >= whole
    assert largest(targets=ids.flatten()) < whole / 2
