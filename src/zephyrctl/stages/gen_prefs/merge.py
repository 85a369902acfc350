"""The parts of a sharded `gen-prefs` made into what one process would have made.

Equal prompts meet in one part, so what becomes of a prompt does not depend on the other parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, any_partial, merge_parts, parts_of, write_in_order
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import close_partial
from zephyrctl.providers.base import UNPAID
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig


def merge(
    artifacts: Sequence[Artifact], work: Work, *, out: str | None = None, note: str | None = None
) -> StepResult:
    """The version that an unsharded `gen-prefs` would have made of the same prompts.

    Raises UsageError when parts are missing, there twice, or of different steps; IntegrityError.
    """

    def fill(staging: Staging, parts: Sequence[Part]) -> None:
        write_in_order(staging, parts)
        if any_partial(parts):
            counts = staging.counts
            of, kept = counts["prompts"], counts["kept"]
            finished = of - counts["dropped"].get(UNPAID, 0)
            close_partial(staging, work.emit, finished=finished, of=of, kept=kept, unit="prompts")

    parts, config = parts_of(artifacts, GenPrefsConfig)
    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)
