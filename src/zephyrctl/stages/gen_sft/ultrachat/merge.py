"""The parts of a sharded `ultrachat` made into what one process would have made.

Equal opening messages can come up in different parts, and filters may look at earlier dialogues. So a part notes its
dialogues in full, and the merge decides anew, in the order of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, any_partial, interleaved, merge_parts
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import close_partial
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.screen import parts_and_screen
from zephyrctl.stages.gen_sft.ultrachat.gathering import Gathering
from zephyrctl.stages.gen_sft.ultrachat.plan import Slot
from zephyrctl.stages.gen_sft.ultrachat.talking import Talk


def as_entry(talk: Talk) -> dict[str, Any]:
    """A dialogue as a part notes it."""
    slot = talk.slot
    return {
        "place": [slot.topic, slot.draw, slot.subtopic, slot.question],
        "subtopic": talk.subtopic,
        "said": [[m.role, m.content] for m in talk.said],
        "ended": talk.ended,
        "trouble": talk.trouble and list(talk.trouble),
    }


def of_entry(entry: Mapping[str, Any]) -> Talk:
    """The dialogue that `as_entry` noted."""
    said = [Message.model_validate({"role": role, "content": content}) for role, content in entry["said"]]
    trouble = entry["trouble"]
    return Talk(
        Slot(entry["position"], *entry["place"]),
        entry["subtopic"],
        said,
        entry["ended"],
        None if trouble is None else (trouble[0], trouble[1]),
    )


def merge(
    artifacts: Sequence[Artifact], work: Work, *, out: str | None = None, note: str | None = None
) -> StepResult:
    """The version that an unsharded `gen-sft --method ultrachat` would have made of the same topics.

    Raises UsageError when parts are missing, there twice, of different steps, or made with another content of a
    suite or a filter's list; IntegrityError.
    """
    parts, config, screen = parts_and_screen(artifacts, work)

    def fill(staging: Staging, parts: Sequence[Part]) -> None:
        gathering = Gathering(parts[0].about, test_fraction=config.test_fraction, screen=screen)
        for _, entry in interleaved(parts):
            staging.write_rows(*gathering.take(of_entry(entry)))
        staging.write_rejects(gathering.reject_rows())
        staging.counts.update(gathering.counts())
        staging.extra["dialogues"] = gathering.tell(work.emit)
        screen.record(staging)
        if any_partial(parts):
            of, finished = gathering.taken, gathering.finished
            close_partial(staging, work.emit, finished=finished, of=of, kept=gathering.kept, unit="dialogues")

    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)
