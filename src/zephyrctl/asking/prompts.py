"""The prompts that a teacher or a pool is given: taken from an artifact or a file, or brought along by the
sandbox."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.config import digest_of
from zephyrctl.errors import IntegrityError, UsageError
from zephyrctl.records import Message, PromptRow, Split, prompt_id, row_seed, split_of

if TYPE_CHECKING:
    from zephyrctl.artifacts.adopt import Source

SANDBOX_ROWS = 1000


@dataclass(frozen=True)
class Seed:
    """A prompt, where it came from (`prompts.jsonl:3`), its split, and its place among all prompts of the step."""

    where: str
    split: Split
    row: PromptRow
    position: int = 0


@dataclass
class Seeds:
    """Prompts not read yet: what they are for the step key, of which world, and how many are wanted (None =
    all).

    `rejects` holds the bad rows that were left out, once `load` has run.
    """

    inputs: list[InputRef]
    world: str
    rows: int | None
    source: Source | None = None
    own: list[PromptRow] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def named(self) -> str:
        """What the prompts are taken from, in words."""
        return ", ".join(item.ref for item in self.inputs)

    @property
    def shares(self) -> list[dict[str, Any]]:
        """What each source of a mixture gave, once `load` has run; empty where nothing is mixed."""
        return [] if self.source is None else self.source.shares()

    def load(self, *, seed: int, test_fraction: float) -> list[Seed]:
        """The prompts, in the order in which they are used: more rows always contain fewer.

        A file is used from its first row on. Prompts of an artifact come in an order drawn by hash of the
        prompt, so that any first part holds both splits; so do those of a mixture. The split they have is kept;
        others get theirs by hash of the prompt.
        """
        taken = self._taken(seed)
        return [_seed(*found, test_fraction, position) for position, found in enumerate(taken)]

    def _taken(self, seed: int) -> list[tuple[str, str | None, PromptRow]]:
        if self.source is None:
            return [(f"{self.named} prompt {i}", None, row) for i, row in enumerate(self.own, 1)]
        found = ((where, split, _prompt(where, row)) for where, split, row in self.source.rows())
        if self.source.in_order:
            taken = list(islice(found, self.rows))
        else:
            ranked = sorted(found, key=lambda x: (row_seed(seed, "order", x[2].prompt_id), x[0]))
            taken = ranked[: self.rows]
        self.rejects = list(self.source.rejects)
        return taken


def _prompt(where: str, row: object) -> PromptRow:
    if not isinstance(row, PromptRow):
        raise IntegrityError(f"{where}: a {type(row).__name__} where a prompt was expected")
    return row


def _seed(where: str, split: str | None, row: PromptRow, test_fraction: float, position: int) -> Seed:
    if split == "test" or (split is None and split_of(row.prompt_id, test_fraction) == "test"):
        return Seed(where, "test", row, position)
    return Seed(where, "train", row, position)


def from_source(source: Source, rows: int | None) -> Seeds:
    """The prompts of an artifact or a file."""
    return Seeds(source.inputs("prompts"), source.world, rows, source)


def from_sandbox(rows: int | None, seed: int) -> Seeds:
    """The prompts that the sandbox's teacher brings along: the first ones of its train side for this seed.

    Raises UsageError when the sandbox does not hold that many.
    """
    from zephyrctl.sandbox.world import train_tasks

    try:
        tasks = train_tasks(rows or SANDBOX_ROWS, seed)
    except ValueError as error:
        raise UsageError(f"--rows {rows}: {error}", hint="fewer --rows, or --prompts FILE") from None
    own = []
    for task in tasks:
        prompt = [Message(role="user", content=task.turns[0])]
        follow_ups = list(task.turns[1:])
        source = f"sandbox/{task.family}"
        own.append(
            PromptRow(prompt_id=prompt_id(prompt), prompt=prompt, follow_ups=follow_ups, source=source)
        )
    digest = digest_of([[row.prompt_id, row.follow_ups] for row in own])
    return Seeds(
        [InputRef(role="prompts", ref="sandbox", digest=digest, kind="prompts")], "sandbox", rows, own=own
    )
