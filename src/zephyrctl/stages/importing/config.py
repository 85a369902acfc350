"""What `zephyrctl import` can be asked."""

from typing import ClassVar, Literal

from pydantic import Field

from zephyrctl.config import StageConfig, reads


class ImportConfig(StageConfig):
    """Settings of `import`: a file, a folder, a data set of the Hub, an artifact or a model in, an artifact out."""

    stage: ClassVar[str] = "import"

    source: str = reads(...)
    """The file, folder, data set or ref that is read."""
    kind: str
    """The kind of artifact to make."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of prompts held out where the source is not split yet, decided by each prompt's hash."""
    filters: list[str] = Field(default_factory=list)
    """Filters that the rows go through, in this order: whole dialogues, of other kinds the prompts."""
    tokenizer: str | None = reads(None)
    """The model whose tokens are counted where a filter has a length in tokens."""
    suites: list[str] = reads([])
    """Evaluation suites that prompts are compared with; unset = those in the project's `suites` folder."""
    contaminated: Literal["drop", "keep"] = "drop"
    """What becomes of rows whose prompt overlaps with a suite."""
