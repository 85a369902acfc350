"""What `zephyrctl gen-sft` can be asked."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from zephyrctl.asking.config import AskingConfig
from zephyrctl.config import reads, runtime

_MOST_ROUNDS = 100


class GenSftConfig(AskingConfig):
    """Settings of `gen-sft`: seed prompts in, dialogues to imitate out."""

    stage: ClassVar[str] = "gen-sft"

    teacher: str
    """The model that answers and refines instructions."""
    method: Literal["zephyr", "self-instruct", "ultrachat"] = "zephyr"
    """How the data is made: refine each seed's instruction from its answer, make up new tasks after seeds, or play
    both sides of a dialogue on a topic."""
    prompts: list[str] = reads([])
    """Seed prompts: artifacts or files, each with `=weight` where wanted, or `-`. Unset = those that ship with
    zephyrctl; the sandbox's teacher brings its own."""
    topics: str | None = reads(None)
    """ultrachat: a text file with one topic a line; unset = the shipped list."""
    rows: int | None = Field(None, ge=1)
    """zephyr: how many seeds to use, from the first on; unset = all of them (1,000 of the sandbox's own).
    self-instruct: how many new tasks to make. ultrachat: how many dialogues to hold (unset = 1,000)."""
    rounds: int = Field(1, ge=0)
    """zephyr: refinements of each seed; K refinements give up to K+1 pairs."""
    turns: tuple[int, int] = (2, 7)
    """ultrachat: the fewest and the most rounds of user and assistant; how many a dialogue has is drawn, and the
    user may end it earlier, though not before the fewest."""
    novelty: float = Field(0.7, gt=0, le=1)
    """zephyr, self-instruct: a machine-made instruction is dropped when its ROUGE-L with one made before is above
    this."""
    islands: int = Field(1, ge=1, le=64)
    """self-instruct: how many pools of tasks grow side by side without knowing each other; shards share them out."""
    instances: int = Field(1, ge=1, le=5)
    """self-instruct: how many instances of a task are kept at most."""
    filters: list[str] = Field(default_factory=list)
    """Filters that finished dialogues go through, in this order: `persona`, `cut-off`, `max-tokens=2048` …"""
    tokenizer: str | None = reads(None)
    """The model whose tokens are counted where a length in tokens is asked for."""
    suites: list[str] = reads([])
    """Evaluation suites that prompts are compared with; unset = those in the project's `suites` folder."""
    contaminated: Literal["drop", "keep"] = "drop"
    """What becomes of prompts that overlap with a suite."""
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

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("turns")
    @classmethod
    def _fewest_first(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1] <= _MOST_ROUNDS:
            raise ValueError(f"the fewest and the most rounds, from 1 to {_MOST_ROUNDS}, such as [2, 7]")
        return value
