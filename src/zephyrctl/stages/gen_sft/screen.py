"""What all methods of `gen-sft` hold against what they read and make: the evaluation suites, and the filters.

Prompts that overlap with a suite are turned away before any of them is asked; finished dialogues are compared too, and
then go through the filters, one after the other in the order of rows. So whoever shows it the same rows in the same
order - one process, or the merge of many - comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, parts_of
from zephyrctl.artifacts.step import Work
from zephyrctl.asking.prompts import Seed
from zephyrctl.benchmarks.decontamination import REASON
from zephyrctl.benchmarks.screening import SUITES, Screening, compares
from zephyrctl.config import digest_of
from zephyrctl.curation.base import Dropped
from zephyrctl.errors import UsageError
from zephyrctl.records import Message, SftRow, prompt_id
from zephyrctl.stages.gen_sft.config import GenSftConfig

_SUITE = "suite"
"""The role of suites among the inputs."""


class Screen(Screening):
    """The suites and the filters of one step of gen-sft."""

    def seeds(self, seeds: Sequence[Seed]) -> tuple[list[Seed], list[dict[str, str]]]:
        """The prompts to go on with, as they are, and those turned away, as rejects (reason `contaminated`)."""
        if self._suites is None:
            return list(seeds), []
        return self._suites.sift(seeds, drop=self._drop)

    def row(self, row: SftRow, *, made: bool = True) -> list[SftRow] | Dropped:
        """The row as it is kept: itself, changed, or in parts; or why it is not.

        `made` = its instructions are machine-made; others were compared with the suites by `seeds`. The first part
        keeps the row's id, which stands for what the teacher said, so that rows refined from it find their parent;
        further parts have ids of their own.
        """
        if made and self._suites is not None:
            hit = self._suites.hit(row.messages, drop=self._drop)
            if hit is not None and self._drop:
                return Dropped(REASON, str(hit))
        kept = self._pipeline.apply(row.messages)
        if isinstance(kept, Dropped):
            return kept
        return [_part(row, number, messages) for number, messages in enumerate(kept)]


def open_screen(config: GenSftConfig, work: Work, world: str) -> Screen:
    """The screen of a step of `world`. The sandbox's own suites are held out from its prompts by construction, so
    there only suites that were named are compared with.

    Raises UsageError for a filter that is not known or has to see all rows first, RefNotFound for a suite or a
    tokenizer that is not there, MissingExtra.
    """
    return _screen(config, work, compared=compares(world, config))


def parts_and_screen(artifacts: Sequence[Artifact], work: Work) -> tuple[list[Part], GenSftConfig, Screen]:
    """The parts of a step that was cut up, the settings of the whole, and the screen that the parts had.

    Raises UsageError when parts are missing, there twice, of different steps, or made with another content of a suite,
    a filter's list or the tokenizer; IntegrityError.
    """
    parts, config = parts_of(artifacts, GenSftConfig)
    assert isinstance(config, GenSftConfig)
    first = parts[0].artifact.manifest
    inputs, extra = first.inputs, first.model_extra or {}
    screen = _screen(config, work, compared=SUITES in extra)
    here = screen.inputs()
    roles = {_SUITE, *(item.role for item in here)}
    there = [item for item in inputs if item.role in roles]
    other = [item for item in here if item not in there] + [item for item in there if item not in here]
    if other:
        named = ", ".join(dict.fromkeys(f"{item.ref} ({item.role})" for item in other))
        raise UsageError(
            f"the parts were made with another content of: {named}",
            hint="merge where the suites, lists and the tokenizer are those that the parts were made with",
        )
    return parts, config, screen


def _screen(config: GenSftConfig, work: Work, *, compared: bool) -> Screen:
    return Screen.opened(
        config,
        work,
        compared=compared,
        refusal="--filter truecase has to see all rows first, and gen-sft filters each row as it is made",
        remedy="afterwards: zephyrctl import sft-data --as sft --filter truecase",
    )


def _part(row: SftRow, number: int, messages: list[Message]) -> SftRow:
    if number == 0 and messages == row.messages:
        return row
    asked, before = _prompt(messages), _prompt(row.messages)
    row_id = row.row_id if number == 0 else _row_id({"of": row.row_id, "part": number})
    own = row.prompt_id if asked == before else prompt_id(asked)
    return row.model_copy(update={"row_id": row_id, "prompt_id": own, "messages": messages})


def _prompt(messages: Sequence[Message]) -> list[Message]:
    roles = [message.role for message in messages]
    return list(messages[: roles.index("assistant")])


def _row_id(body: Mapping[str, Any]) -> str:
    return digest_of(dict(body)).removeprefix("sha256:")
