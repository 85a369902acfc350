"""What `zephyrctl gen-sft` can be asked."""

from typing import ClassVar

from pydantic import Field

from zephyrctl.asking.config import AskingConfig
from zephyrctl.config import reads, runtime


class GenSftConfig(AskingConfig):
    """Settings of `gen-sft`: seed prompts in, dialogues to imitate out."""

    stage: ClassVar[str] = "gen-sft"

    teacher: str
    """The model that answers and refines instructions."""
    prompts: str | None = reads(None)
    """Seed prompts: an artifact, a file, or `-` for standard input. The sandbox's teacher brings its own."""
    rows: int | None = Field(None, ge=1)
    """How many seeds to use, from the first on; unset = all of them (1,000 of the sandbox's own)."""
    rounds: int = Field(1, ge=0)
    """Refinements of each seed: K refinements give up to K+1 pairs."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of answers and refinements. 0.7, the value of Self-Instruct: data to imitate wants
    answers that differ from each other but stay near the teacher's best; completions to be ranked want 1.0
    (see gen-prefs)."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the sampling distribution; 1 = all of it."""
    max_tokens: int = Field(1024, ge=1)
    """Longest reply in tokens; a reply cut there is dropped and counted."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of seeds in the test split, by hash of the seed prompt; what was refined from a seed stays on its
    side."""
    max_failures: float = runtime(0.2, ge=0, le=1)
    """Share of failed, refused, empty or cut-off replies past which the stage rejects its own outcome (exit
    9)."""
