"""Which engine trains, over how many processes, with which attention: chosen once, said, and asserted at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EngineName = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
AttentionName = Literal["flash_attention_2", "sdpa", "eager"]


@dataclass(frozen=True)
class EngineChoice:
    """What `engine`, `num_processes`, `attn` and `recompute` come to on this hardware."""

    name: EngineName = "single"
    processes: int = 1
    """Over all machines."""
    machines: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    offload: bool = False
    attention: AttentionName = "sdpa"
    recompute: bool = False
    why: str = ""
    """One clause on why these were chosen where the settings said auto."""

    @property
    def sharded(self) -> bool:
        """Whether a process holds only a part of the weights or of the optimiser's states."""
        return self.name in ("fsdp2", "zero2", "zero3")
