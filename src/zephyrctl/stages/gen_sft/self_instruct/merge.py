"""The islands of several shards made into what one process would have made.

A shard notes its islands in full: their tasks with the teacher's replies, and all that was dropped. What two islands
made alike, the suites and the filters are decided anew over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, any_partial, interleaved, merge_parts
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import close_partial
from zephyrctl.asking.prompts import Seed
from zephyrctl.records import PromptRow
from zephyrctl.stages.gen_sft.screen import parts_and_screen
from zephyrctl.stages.gen_sft.self_instruct.harvest import Harvest
from zephyrctl.stages.gen_sft.self_instruct.islands import Island, Reject, Task


def as_entry(island: Island, seeds: Sequence[Seed]) -> dict[str, Any]:
    """An island as a shard notes it; the first one also holds the seeds, so that they can be compared with the suites
    anew."""
    return {
        "seeds": [_noted(seed) for seed in seeds] if island.index == 0 else [],
        "tasks": [vars(task) for task in island.tasks],
        "rejects": [vars(reject) for reject in island.rejects],
        "failures": [vars(reject) for reject in island.failures],
        "asked": island.asked,
        "answered": island.answered,
        "proposed": island.proposed,
        "ending": island.ending,
    }


def of_entry(entry: Mapping[str, Any]) -> Island:
    """The island that `as_entry` noted."""
    tasks = []
    for noted in entry["tasks"]:
        trouble = noted["trouble"]
        tasks.append(Task(**{**noted, "trouble": trouble and tuple(trouble)}))
    return Island(
        index=entry["position"],
        tasks=tasks,
        rejects=[Reject(**noted) for noted in entry["rejects"]],
        failures=[Reject(**noted) for noted in entry["failures"]],
        asked=entry["asked"],
        answered=entry["answered"],
        proposed=entry["proposed"],
        ending=entry["ending"],
    )


def _noted(seed: Seed) -> dict[str, Any]:
    row = seed.row.model_dump(mode="json")
    return {"where": seed.where, "split": seed.split, "row": row, "position": seed.position}


def _seed(noted: Mapping[str, Any]) -> Seed:
    return Seed(**{**noted, "row": PromptRow.model_validate(noted["row"])})


def merge(
    artifacts: Sequence[Artifact], work: Work, *, out: str | None = None, note: str | None = None
) -> StepResult:
    """The version that an unsharded `gen-sft --method self-instruct` would have made.

    Raises UsageError when parts are missing, there twice, of different steps, or made with other suites or filters;
    IntegrityError.
    """
    parts, config, screen = parts_and_screen(artifacts, work)
    manifest = parts[0].artifact.manifest

    def fill(staging: Staging, parts: Sequence[Part]) -> None:
        first = parts[0]
        harvest = Harvest(config, first.about, screen)
        islands = []
        for _, entry in interleaved(parts):
            screen.seeds([_seed(noted) for noted in entry["seeds"]])
            islands.append(of_entry(entry))
        staging.write_rejects(islice(first.artifact.rejects(), first.bad_rows))
        harvest.write(islands, staging)
        harvest.tell_alike(work.emit)
        screen.record(staging)
        staging.counts.update(harvest.counts(manifest.counts["seeds"], first.bad_rows))
        if any_partial(parts):
            of, unfinished = harvest.of, harvest.unfinished
            close_partial(
                staging, work.emit, finished=of - unfinished, of=of, kept=harvest.rows, unit="tasks"
            )

    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)
