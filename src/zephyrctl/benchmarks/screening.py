"""What a stage that asks models holds against its rows: evaluation suites, and the filters asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.lengths import open_counter
from zephyrctl.benchmarks.decontamination import Decontaminator, open_decontaminator
from zephyrctl.curation.lengths import TokenCounter
from zephyrctl.curation.pipeline import Pipeline, make_pipeline
from zephyrctl.errors import UsageError

SUITES, FILTERS = "decontamination", "filters"
"""What the manifest calls the comparison with suites, and the counts of the filters."""


class Settings(Protocol):
    """The settings of a stage that screens its rows."""

    @property
    def filters(self) -> Sequence[str]:
        """The filters, in their order."""
        ...

    @property
    def tokenizer(self) -> str | None:
        """The model whose tokens are counted."""
        ...

    @property
    def suites(self) -> Sequence[str]:
        """The suites that were named."""
        ...

    @property
    def contaminated(self) -> str:
        """`drop` or `keep`."""
        ...


class Screening:
    """The suites and the filters of one step, with their counts. It belongs to one thread.

    `suites` None = nothing is compared with suites.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        suites: Decontaminator | None = None,
        drop: bool = True,
        counter: TokenCounter | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._suites = suites
        self._drop = drop
        self._counter = counter

    @classmethod
    def opened(cls, config: Settings, work: Work, *, compared: bool, refusal: str, remedy: str) -> Self:
        """What the settings ask for; `compared` = with suites. `refusal` says why a filter that has to see all rows
        first has no place here, `remedy` where it has.

        Raises UsageError for such a filter and for one that is not known, RefNotFound for a suite or a tokenizer that
        is not there, MissingExtra.
        """
        counter = None if config.tokenizer is None else open_counter(work.store, config.tokenizer)
        pipeline = make_pipeline(config.filters, count=counter)
        if pipeline.learns:
            raise UsageError(refusal, hint=remedy)
        suites = open_decontaminator(config.suites, work.project, work.emit) if compared else None
        return cls(pipeline, suites=suites, drop=config.contaminated == "drop", counter=counter)

    def inputs(self) -> list[InputRef]:
        """Suites, tokenizer and the filters' lists and versions, as inputs of the step."""
        found = [] if self._suites is None else list(self._suites.inputs())
        if self._counter is not None:
            label, digest = self._counter.label, self._counter.digest
            found.append(InputRef(role="tokenizer", ref=label, digest=digest, kind="model"))
        return found + self._pipeline.inputs()

    def record(self, staging: Staging) -> None:
        """Puts what was compared and what the filters did into the manifest."""
        if self._suites is not None:
            staging.extra[SUITES] = self._suites.record()
        counts = self._pipeline.counts()
        if counts:
            staging.extra[FILTERS] = counts


def compares(world: str, config: Settings) -> bool:
    """Whether prompts of `world` are compared with suites: the sandbox's own are held out from its prompts by
    construction, so there only suites that were named are."""
    return world != "sandbox" or bool(config.suites)
