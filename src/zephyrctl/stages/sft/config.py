"""Settings of `sft`."""

from __future__ import annotations

from typing import ClassVar

from zephyrctl.training.settings import TrainingConfig


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on dialogues."""

    stage: ClassVar[str] = "sft"

    packing: bool = False
    """Put several rows into one sequence of up to `max_length` tokens; rows never see each other. A batch
    then counts sequences."""
