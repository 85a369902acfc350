"""The seed tasks that ship with the package, for a start from an empty folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.prompts import Seeds
from zephyrctl.errors import IntegrityError, UsageError
from zephyrctl.records import Message, PromptRow, prompt_id, row_seed

REF = "zephyrctl/seeds"
"""What the shipped seeds are called where an input is named."""
FILE_NAME = "seed_tasks.jsonl"


@dataclass(frozen=True)
class SeedTask:
    """One task of our own wording: an instruction, at times with an input, its answer, and further user turns."""

    id: str
    kind: str
    instruction: str
    input: str
    output: str
    is_classification: bool
    follow_ups: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The instruction, with its input after a blank line where it has one."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


def seed_tasks() -> list[SeedTask]:
    """All shipped seed tasks, in their order: one of each kind, then a second of each, and so on.

    Within a kind the order is drawn by hash, so any first part is as varied as it can be. Raises IntegrityError
    when the file was damaged after it was installed.
    """
    return list(_tasks())


def from_package(rows: int | None) -> Seeds:
    """The first `rows` seed tasks as prompts (None = all of them).

    Raises UsageError when there are not that many, IntegrityError as `seed_tasks` does.
    """
    tasks = seed_tasks()
    if rows is not None and rows > len(tasks):
        raise UsageError(
            f"--rows {rows}: {len(tasks)} seed tasks ship with zephyrctl",
            hint="fewer --rows, prompts of your own with --prompts FILE, "
            "or more tasks made after the shipped ones: gen-sft --method self-instruct",
        )
    own = [_prompt(task) for task in tasks[:rows]]
    digest = "sha256:" + hashlib.sha256(_raw()).hexdigest()
    return Seeds([InputRef(role="prompts", ref=REF, digest=digest, kind="prompts")], "real", rows, own=own)


def _prompt(task: SeedTask) -> PromptRow:
    prompt = [Message(role="user", content=task.prompt)]
    return PromptRow(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        follow_ups=list(task.follow_ups),
        source=f"{REF}/{task.kind}",
    )


@cache
def _tasks() -> tuple[SeedTask, ...]:
    by_kind: dict[str, list[SeedTask]] = defaultdict(list)
    for number, line in enumerate(_raw().decode("utf-8").splitlines(), start=1):
        task = read_task(line, f"{FILE_NAME}:{number}")
        by_kind[task.kind].append(task)
    ranked = []
    for found in by_kind.values():
        found.sort(key=_draw)
        ranked += [(rank, _draw(task), task) for rank, task in enumerate(found)]
    return tuple(task for _, _, task in sorted(ranked, key=lambda entry: entry[:2]))


def _draw(task: SeedTask) -> int:
    return row_seed(0, "seed task", task.id)


@cache
def _raw() -> bytes:
    return files("zephyrctl.asking").joinpath(FILE_NAME).read_bytes()


def read_task(line: str, where: str) -> SeedTask:
    """A line of the seed file. Every key must be there, none besides, each of its own type.

    Raises IntegrityError naming `where`.
    """
    try:
        body = json.loads(line)
    except ValueError as error:
        raise IntegrityError(f"{where}: not JSON: {error}") from None
    names = [field.name for field in fields(SeedTask)]
    if not isinstance(body, dict) or sorted(body) != sorted(names):
        raise IntegrityError(f"{where}: a seed task has the keys {', '.join(names)} and no others")
    further = body["follow_ups"]
    if not isinstance(further, list) or not all(isinstance(turn, str) and turn.strip() for turn in further):
        raise IntegrityError(f"{where}: `follow_ups` must be a list of texts")
    if not isinstance(body["is_classification"], bool):
        raise IntegrityError(f"{where}: `is_classification` must be true or false")
    for name in ("id", "kind", "instruction", "input", "output"):
        text = body[name]
        if not isinstance(text, str) or text != text.strip() or not (text or name == "input"):
            raise IntegrityError(f"{where}: `{name}` must be a text without white space around it")
    return SeedTask(**{**body, "follow_ups": tuple(further)})
