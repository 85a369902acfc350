"""The edition that is taken where none is named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.editions.choose import Start, choose
from zephyrctl.editions.load import load, names

GIB = 1024**3
MISTRAL = 7_241_732_096


def edition(start: Start, gpus: int = 0, gib: float | None = None, stage: str = "sft") -> str:
    return choose(stage, start, gpus=gpus, gpu_bytes=None if gib is None else int(gib * GIB)).edition


def test_by_size_and_memory() -> None:
    assert edition(Start(MISTRAL, sandbox=True), 8, 80) == "sandbox"
    assert edition(Start(360_000_000)) == edition(Start(1_000_000_000), 8, 80) == "small"
    assert edition(Start(MISTRAL), 1, 24) == edition(Start(MISTRAL), 1, 80) == "one-gpu"
    assert edition(Start(MISTRAL), 8, 80) == edition(Start(MISTRAL), 1, 141) == "zephyr-7b/paper"
    assert edition(Start(MISTRAL)) == edition(Start(None), 1, 24) == "zephyr-7b/paper"


def test_a_chain_stays_with_its_edition() -> None:
    made = Start(MISTRAL, edition="zephyr-7b/handbook-0.2 + lr")
    assert edition(made, 1, 24, "dpo") == "zephyr-7b/handbook-0.2"
    assert (
        edition(Start(MISTRAL, edition="zephyr-h4"), 8, 80, "dpo") == "zephyr-7b/paper"
    )  # settles no training
    assert edition(Start(MISTRAL, edition="gone"), 1, 24, "dpo") == "one-gpu"


def test_it_says_why_with_the_numbers() -> None:
    choice = choose("sft", Start(MISTRAL), gpus=2, gpu_bytes=24 * GIB)
    assert (
        choice.why
        == "training the whole model needs about 135 GiB for 7.2 B parameters, 2 GPUs have 24 GiB each"
    )
    assert "no more than 1 B" in choose("sft", Start(135_000_000), gpus=0, gpu_bytes=None).why


@given(
    st.builds(
        Start,
        st.none() | st.integers(1, 10**12),
        st.booleans(),
        st.none() | st.sampled_from(names()) | st.text(max_size=20),
    ),
    st.integers(0, 64),
    st.none() | st.integers(1, 200 * GIB),
    st.sampled_from(["sft", "dpo"]),
)
def test_the_choice_always_settles_the_stage(start: Start, gpus: int, memory: int | None, stage: str) -> None:
    choice = choose(stage, start, gpus=gpus, gpu_bytes=memory)
    assert stage in load(choice.edition).sections
    assert choice.why


@given(st.integers(10**9 + 1, 10**12), st.integers(1, 64), st.integers(GIB, 200 * GIB))
def test_more_memory_never_leads_to_less_training(parameters: int, gpus: int, memory: int) -> None:
    start = Start(parameters)
    if choose("sft", start, gpus=gpus, gpu_bytes=memory).edition == "zephyr-7b/paper":
        assert choose("sft", start, gpus=gpus + 1, gpu_bytes=memory).edition == "zephyr-7b/paper"
