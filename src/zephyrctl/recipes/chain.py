"""Run stages one after the other through the same doors as the commands: settings in, a ref out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.config import StageConfig
from zephyrctl.editions.resolve import resolve
from zephyrctl.errors import ZephyrError
from zephyrctl.events import Calls, Emit, Event, Note, Progress, Table

if TYPE_CHECKING:
    from zephyrctl.artifacts.artifact import Artifact
    from zephyrctl.artifacts.store import Store

_ROOMS = {
    "gen-sft": ("gen_sft", "GenSftConfig"),
    "sft": ("sft", "SftConfig"),
    "gen-prefs": ("gen_prefs", "GenPrefsConfig"),
    "binarize": ("binarize", "BinarizeConfig"),
    "dpo": ("dpo", "DpoConfig"),
    "eval": ("eval", "EvalConfig"),
}


def stage_parts(stage: str) -> tuple[type[StageConfig], Callable[[Any, Work], StepResult]]:
    """A stage's config class and its `run`, imported when asked for."""
    room, config_name = _ROOMS[stage]
    config_class = getattr(import_module(f"zephyrctl.stages.{room}.config"), config_name)
    return config_class, import_module(f"zephyrctl.stages.{room}.run").run


@dataclass
class Chain:
    """A chain of sandbox stages: where it works, whom it tells, and the refs made so far, in order."""

    store: Store
    emit: Emit
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings by stage that go before those of `step`'s callers."""
    steps: int = 0
    """How many steps there will be, for the numbers in front of hints."""
    made: dict[str, str] = field(default_factory=dict)
    number: int = 0
    fresh: int = 0
    """How many steps had to work; 0 = everything was there already."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step by the name of what it made."""

    def step(self, stage: str, hint: str, **typed: Any) -> Artifact:
        """What one stage made, or made before, with settings as a user would type them.

        Says `hint` first and the ref afterwards; of what the stage itself tells, only running progress and
        warnings pass, the rest is in its log. Raises what the stage raises, with the stage named.
        """
        config_class, run = stage_parts(stage)
        self.number += 1
        self.emit(Note(f"{self.number}/{self.steps} {stage}: {hint}"))
        started = time.monotonic()
        settled = resolve(config_class, {**self.overrides.get(stage, {}), **typed}, sandbox=True)
        try:
            result = run(settled.config, Work(self.store, emit=self._tell, edition=settled.label))
        except ZephyrError as error:
            error.message = f"{stage}: {error.message}"
            error.args = (error.message,)
            raise
        if result.artifact is None or result.ref is None:
            raise RuntimeError(f"{stage} made nothing")
        seconds = self.seconds[result.artifact.ref.name] = time.monotonic() - started
        self.emit(
            Note(f"    {result.ref} " + ("was there already" if result.already else f"({seconds:.0f} s)"))
        )
        self.fresh += not result.already
        self.made[result.artifact.ref.name] = result.ref
        self.made.update(result.sides)
        return result.artifact

    def _tell(self, event: Event) -> None:
        # a finished bar would stay on the screen; the line with the ref says the same
        bar = event if isinstance(event, Progress | Calls) else None
        finished = bar is not None and bar.total is not None and bar.done >= bar.total
        if not finished and not isinstance(event, Note | Table):
            self.emit(event)
