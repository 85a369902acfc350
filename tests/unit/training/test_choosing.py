"""Which engine the settings come to: taken or refused with the fix, before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.errors import EnvironmentFault, MissingExtra, UsageError, ZephyrError
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.choosing import (
    FILL,
    choose_engine,
    choose_micro,
    count_processes,
    fits,
    require_fit,
)
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.hardware import GIB, Gpu, Hardware, parse_hardware
from zephyrctl.training.known_shapes import known_shape

MISTRAL = known_shape("Mistral-7B-v0.1")
SMOL = known_shape("SmolLM2-135M")
LAPTOP = Hardware((), 16 * GIB, 4, frozenset({"deepspeed"}))
BIG = SftConfig(batch_size=512, max_length=2048)


def bare(gpus: int, gigabytes: int = 80) -> Hardware:
    """GPUs of this machine, without any optional package."""
    return Hardware((Gpu("NVIDIA A100", gigabytes * 10**9),) * gpus, 500 * GIB, 32, frozenset())


def test_one_process_is_single() -> None:
    assert choose_engine(SftConfig(), SMOL, LAPTOP) == EngineChoice()
    assert choose_engine(SftConfig(), SMOL, bare(1)).device == "cuda"


def test_several_processes_take_ddp_where_the_model_fits_whole() -> None:
    assert choose_engine(BIG, SMOL, parse_hardware("8xA100")).name == "ddp"
    assert choose_engine(SftConfig(num_processes=2), SMOL, LAPTOP).name == "ddp"


@pytest.mark.parametrize(("packages", "engine"), [({"deepspeed"}, "zero3"), (set(), "fsdp2")])
def test_a_model_that_does_not_fit_whole_is_sharded(packages: set[str], engine: str) -> None:
    choice = choose_engine(BIG, MISTRAL, replace(bare(8), packages=frozenset(packages)))
    assert choice.name == engine
    assert choice.why
    assert (
        choose_engine(BIG.model_copy(update={"offload": True}), SMOL, parse_hardware("8xA100")).name
        == "zero3"
    )


def test_adapters_on_four_bits_are_never_sharded() -> None:
    config = BIG.model_copy(update={"lora": True, "quantize": "nf4"})
    assert choose_engine(config, MISTRAL, parse_hardware("8x24GB")).name == "ddp"


def test_flash_attention_is_used_where_it_is_there() -> None:
    assert choose_engine(BIG, SMOL, parse_hardware("1xH100")).attention == "flash_attention_2"
    assert choose_engine(BIG, SMOL, bare(1)).attention == "sdpa"
    with pytest.raises(MissingExtra, match="flash_attn") as caught:
        choose_engine(SftConfig(attn="flash"), SMOL, bare(1))
    assert caught.value.hint == "pip install 'zephyrctl[flash-attn]'"
    with pytest.raises(EnvironmentFault, match="needs a GPU"):
        choose_engine(SftConfig(attn="flash"), SMOL, LAPTOP)


def test_activations_are_recomputed_only_where_they_must_be() -> None:
    tight = choose_engine(SftConfig(lora=True, max_length=2048), MISTRAL, parse_hardware("1x24GB"))
    wide = choose_engine(SftConfig(lora=True, max_length=2048), MISTRAL, parse_hardware("1xH200"))
    assert (tight.recompute, wide.recompute) == (True, False)
    assert choose_engine(SftConfig(recompute="on"), SMOL, parse_hardware("1xH200")).recompute
    assert not choose_engine(
        SftConfig(recompute="off", max_length=2048), MISTRAL, parse_hardware("1x24GB")
    ).recompute


@pytest.mark.parametrize(
    ("asked", "hardware", "error", "match"),
    [
        ({"engine": "single", "num_processes": 2}, LAPTOP, UsageError, "engine=single is one process"),
        ({"num_processes": 64}, LAPTOP, UsageError, "a batch of 32 cannot be shared by 64"),
        ({"num_processes": 3, "num_machines": 2, "rendezvous": "a:1"}, LAPTOP, UsageError, "do not divide"),
        ({"num_processes": 4}, bare(2), EnvironmentFault, "with 2 visible GPUs"),
        ({"engine": "zero3", "num_processes": 2}, bare(2), MissingExtra, "deepspeed"),
        ({"engine": "zero2", "num_processes": 2}, LAPTOP, EnvironmentFault, "float32 only"),
        ({"engine": "fsdp2", "num_processes": 2}, LAPTOP, EnvironmentFault, "fsdp2 needs GPUs"),
        ({"offload": True}, LAPTOP, UsageError, "cannot offload"),
        ({"offload": True, "engine": "ddp", "num_processes": 2}, LAPTOP, UsageError, "cannot offload"),
        ({"offload": True, "num_processes": 2}, bare(2), MissingExtra, "deepspeed"),
        ({"offload": True, "lora": True, "quantize": "nf4"}, parse_hardware("8xH100"), UsageError, "in 4 bits"),
        ({"lora": True, "quantize": "nf4"}, bare(1), MissingExtra, "bitsandbytes"),
        ({"lora": True, "quantize": "nf4", "engine": "zero3"}, parse_hardware("8xH100"), UsageError, "in 4 bits"),
        ({"optimizer": "paged_adamw_32bit", "engine": "zero3"}, parse_hardware("8xH100"), UsageError, "its own"),
        ({"attn": "flash", "dtype": "fp32"}, parse_hardware("1xH100"), UsageError, "bfloat16 only"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_fix(
    asked: dict[str, Any], hardware: Hardware, error: type[ZephyrError], match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    with pytest.raises(error, match=match) as caught:
        choose_engine(SftConfig(**asked), SMOL, hardware)
    assert caught.value.hint


def test_deepspeed_on_a_cpu_needs_a_compiler() -> None:
    config = SftConfig(engine="zero3", num_processes=2, dtype="fp32")
    assert choose_engine(config, SMOL, LAPTOP).name == "zero3"
    with pytest.raises(EnvironmentFault, match="no compiler"):
        choose_engine(config, SMOL, replace(LAPTOP, compiler=False))


def test_processes_are_one_for_each_gpu_of_every_machine() -> None:
    several = SftConfig(num_machines=2, rendezvous="host:29500")
    assert count_processes(several, bare(8)) == 16
    assert count_processes(several, parse_hardware("16xA100")) == 16
    assert count_processes(SftConfig(num_processes=3), bare(8)) == 3
    assert count_processes(SftConfig(), LAPTOP) == 1


def test_the_size_of_a_pass_is_as_set_and_never_more_than_the_share() -> None:
    choice = choose_engine(BIG, SMOL, parse_hardware("8xH100"))
    assert (
        choose_micro(BIG.model_copy(update={"micro_batch": 3}), SMOL, choice, parse_hardware("8xH100")) == 3
    )
    assert choose_micro(BIG.model_copy(update={"batch_size": 8}), SMOL, choice, parse_hardware("8xH100")) == 1
    assert choose_micro(SftConfig(batch_size=4), SMOL, EngineChoice(), LAPTOP) == 1
    assert choose_micro(SftConfig(batch_size=32, max_length=256), SMOL, EngineChoice(), LAPTOP) == 4
    tiny = replace(SMOL, parameters=1_000_000)
    assert choose_micro(SftConfig(batch_size=4), tiny, EngineChoice(), LAPTOP) == 4


def test_gemma_2_gets_the_attention_that_it_can_have() -> None:
    gemma = replace(SMOL, architecture="Gemma2ForCausalLM")
    assert choose_engine(SftConfig(), gemma, LAPTOP).attention == "eager"
    assert choose_engine(SftConfig(attn="sdpa"), gemma, LAPTOP).attention == "sdpa"


def test_what_does_not_fit_names_what_would() -> None:
    with pytest.raises(
        EnvironmentFault, match=r"7\.2 B-parameter model with single on 1 process needs"
    ) as caught:
        require_fit(SftConfig(), MISTRAL, EngineChoice(), LAPTOP, micro=8)
    assert "sandbox" in (caught.value.hint or "")
    hardware = parse_hardware("1x24GB")
    lora = SftConfig(lora=True, max_length=2048)
    choice = replace(choose_engine(lora, MISTRAL, hardware), recompute=False)
    with pytest.raises(EnvironmentFault) as caught:
        require_fit(lora, MISTRAL, choice, hardware, micro=64)
    assert caught.value.hint == "--set recompute=on --set micro_batch=1"
    full = SftConfig(max_length=1024)
    with pytest.raises(EnvironmentFault) as caught:
        require_fit(full, MISTRAL, choose_engine(full, MISTRAL, hardware), hardware, micro=1)
    assert "--set lora=true" in (caught.value.hint or "")


def test_offloading_wants_main_memory_too() -> None:
    config = SftConfig(engine="zero3", offload=True, batch_size=64)
    hardware = replace(parse_hardware("2x80GB"), memory=32 * GIB)
    choice = choose_engine(config, MISTRAL, hardware)
    with pytest.raises(EnvironmentFault, match="main memory"):
        require_fit(config, MISTRAL, choice, hardware, micro=1)


@settings(max_examples=60)
@given(
    gpus=st.sampled_from(["1x24GB", "2x24GB", "8x40GB", "16x80GB", "1xH200"]),
    stage=st.sampled_from([SftConfig, DpoConfig]),
    batch=st.integers(16, 512),
    length=st.integers(64, 4096),
    lora=st.booleans(),
)
def test_a_chosen_pass_fits_wherever_one_row_does(
    gpus: str, stage: Any, batch: int, length: int, lora: bool
) -> None:
    config = stage(batch_size=batch, max_length=length, lora=lora)
    hardware = parse_hardware(gpus)
    choice = choose_engine(config, MISTRAL, hardware)
    micro = choose_micro(config, MISTRAL, choice, hardware)
    assert 1 <= micro <= -(-batch // choice.processes)
    if fits(config, MISTRAL, choice, hardware, micro=1):
        needed = require_fit(config, MISTRAL, choice, hardware, micro=micro)
        assert needed is not None
        assert needed.device <= FILL * (hardware.gpu_memory or 0)
