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
from zephyrctl.judges.audit import Audit
from zephyrctl.providers.base import UNPAID
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.intake import RECORDS
from zephyrctl.stages.gen_prefs.outcome import tell_audit


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

        # what was compared and filtered is the same in every part: each looked at the prompts of all
        whole = parts[0].artifact.manifest.model_extra or {}
        staging.extra.update({name: whole[name] for name in RECORDS if name in whole})
        tell_audit(work, _audit(parts), staging)

    parts, config = parts_of(artifacts, GenPrefsConfig)
    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)


def _audit(parts: Sequence[Part]) -> Audit:
    """The judge's habits over the rows of all parts, in whatever order they come."""
    audit: Audit | None = None
    for part in parts:
        for _, _, row in part.artifact.rows():
            assert isinstance(row, FeedbackRow)
            audit = audit or Audit(row.judge)
            audit.add(row)
    return audit or Audit("")
