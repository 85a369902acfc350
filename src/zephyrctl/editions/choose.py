"""Which edition's settings a training stage takes where none is named: from the model it starts from and the GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from zephyrctl.editions.load import load, names
from zephyrctl.editions.resolve import DEFAULT, SANDBOX

SMALL = "small"
ONE_GPU = "one-gpu"
SMALL_AT_MOST = 1_000_000_000
"""Parameters up to which the edition `small` is meant."""
BYTES_PER_PARAMETER = 16
"""Full training in bfloat16 autocast: float32 weights, gradients and two states of AdamW, 4 bytes each. What the
activations need comes on top, and is what `HEADROOM` stands for."""
HEADROOM = 1.25
_GIB = 1024**3


@dataclass(frozen=True)
class Start:
    """What is known of the model that training starts from.

    `parameters` None = cannot be counted, or no model is named; `edition` is the label in its manifest
    (`zephyr-7b/paper + lr`), None for a model from elsewhere.
    """

    parameters: int | None = None
    sandbox: bool = False
    edition: str | None = None


@dataclass(frozen=True)
class Choice:
    """An edition and, as the end of a sentence, why it is the one."""

    edition: str
    why: str


def choose(stage: str, start: Start, *, gpus: int, gpu_bytes: int | None) -> Choice:
    """The edition for `stage` (`sft`, `dpo`) of a model on `gpus` GPUs over all machines, each of `gpu_bytes` bytes
    (None = not known).

    In this order: the sandbox's model takes the sandbox's; a model that was made with an edition goes on with it; a
    model of up to 1 B parameters takes `small`; one whose full training does not fit the GPUs' memory together takes
    `one-gpu`; all others take the paper's, also where there is no GPU to plan for.
    """
    if start.sandbox:
        return Choice(SANDBOX, "the model is the sandbox's")
    made_with = (start.edition or "").partition(" + ")[0]
    if made_with in names() and stage in load(made_with).sections:
        return Choice(made_with, "the model it starts from was made with it")
    if start.parameters is None:
        return Choice(DEFAULT, "no model of known size is named")
    size = _count(start.parameters)
    if start.parameters <= SMALL_AT_MOST:
        return Choice(SMALL, f"the model has {size} parameters, no more than 1 B")
    if not gpus or gpu_bytes is None:
        return Choice(DEFAULT, f"the model has {size} parameters, and there is no GPU here to fit them to")
    needed, there = start.parameters * BYTES_PER_PARAMETER * HEADROOM, gpus * gpu_bytes
    memory = f"about {needed / _GIB:,.0f} GiB for {size} parameters, {_gpus(gpus, gpu_bytes)}"
    if needed > there:
        return Choice(ONE_GPU, f"training the whole model needs {memory}")
    return Choice(DEFAULT, f"the whole model can be trained: it needs {memory}")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.1f} M"


def _gpus(gpus: int, gpu_bytes: int) -> str:
    have = f"{gpu_bytes / _GIB:,.0f} GiB"
    return f"the GPU has {have}" if gpus == 1 else f"{gpus} GPUs have {have} each"
