"""What the islands came to, as rows and rejects, decided in one fixed order and counted so that all sums add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import partial_counts
from zephyrctl.asking.seats import FAILURES
from zephyrctl.config import digest_of
from zephyrctl.curation.base import Dropped
from zephyrctl.events import Emit, Warning_
from zephyrctl.providers.base import UNPAID
from zephyrctl.records import Message, SftRow, prompt_id, split_of
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.self_instruct.islands import (
    SURPLUS,
    Island,
    Reject,
    Task,
    failures_of,
    sift,
)
from zephyrctl.stages.gen_sft.self_instruct.reading import Instance, read_instances

SOURCE = "self-instruct"
_NO_INSTANCE = ("no_instance", "the reply holds no instance that can be used")


def rows_of(config: GenSftConfig) -> int:
    """How many tasks are to be made in all."""
    assert config.rows is not None
    return config.rows


def target_of(config: GenSftConfig) -> int:
    """How many of them each island makes."""
    return -(-rows_of(config) // config.islands)


@dataclass
class Harvest:
    """Turns finished islands into rows and rejects, and counts.

    For every run that paid for all its replies:

        requests: asked = answered + sum of failed (by reason)
        tasks:    proposed = kept + sum of dropped (by reason)
        kinds:    classification + other + unclear = tasks whose instances were asked for
        instances: found = kept + sum of dropped (by reason); rows = kept + further parts that a filter cut

    A task is kept when at least one row came of it. In a run that only replays the ledger, proposed = kept + sum of
    dropped + unpaid, and `unfinished` of those wanted are not there or not settled.
    """

    config: GenSftConfig
    teacher: str
    screen: Screen
    rejects: list[Reject] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    dropped_tasks: Counter[str] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)
    dropped_instances: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    of: int = 0
    unfinished: int = 0
    alike: int = 0
    """Tasks that two islands made alike."""
    _row_ids: set[str] = field(default_factory=set)

    def write(self, islands: Sequence[Island], staging: Staging) -> None:
        """Writes the rows of all islands and what was dropped; tasks that two islands share are decided here."""
        target = target_of(self.config)
        self.of = min(rows_of(self.config), target * len(islands))
        for island in islands:
            self.requests.update(asked=island.asked, answered=island.answered)
            self.tasks["proposed"] += island.proposed
            self.rejects += [*island.failures, *island.rejects]
            self.dropped_tasks.update(reject.reason for reject in island.rejects)
            if island.ending == UNPAID:
                self.unfinished += target - len(island.tasks)
        self.failed = failures_of(islands)
        tasks, alike = sift(islands, self.config.novelty, self.of)
        self.unfinished = min(self.of, self.unfinished)
        self.alike = sum(reject.reason != SURPLUS for reject in alike)
        self.rejects += alike
        self.dropped_tasks.update(reject.reason for reject in alike)
        for task in tasks:
            split = split_of(_id(task.instruction), self.config.test_fraction)
            staging.write_rows(split, self._rows(task))
        staging.write_rejects(reject.as_row() for reject in self.rejects)

    def _rows(self, task: Task) -> Iterator[SftRow]:
        if task.trouble is not None and task.trouble[0] == UNPAID:
            self.tasks["unpaid"] += 1
            self.unfinished = min(self.of, self.unfinished + 1)
            return
        self.kinds[task.kind or "unclear"] += 1
        made, found = 0, self._instances(task)
        for instance in found:
            self.instances["found"] += 1
            kept = self._screened(task, instance)
            if isinstance(kept, Dropped):
                self.dropped_instances[kept.reason] += 1
                said = {"instruction": task.instruction, "input": instance.given, "output": instance.output}
                self.rejects.append(Reject(task.where, kept.reason, kept.detail, said))
                continue
            self.instances["kept"] += 1
            self.rows += len(kept)
            made += 1
            yield from kept
        if made:
            self.tasks["kept"] += 1
            return
        nothing = ("cut_off", "the reply ends before an instance") if task.cut and not found else _NO_INSTANCE
        reason, detail = task.trouble or nothing
        self.dropped_tasks[reason] += 1
        said = {"instruction": task.instruction, "reply": task.reply or ""}
        self.rejects.append(Reject(task.where, reason, detail, said))

    def _instances(self, task: Task) -> list[Instance]:
        if task.reply is None:
            return []
        classification = task.kind == "classification"
        return read_instances(
            task.reply, classification=classification, cut=task.cut, most=self.config.instances
        )

    def _screened(self, task: Task, instance: Instance) -> list[SftRow] | Dropped:
        if instance.reason:
            return Dropped(instance.reason, instance.detail)
        row = row_of(task.instruction, instance, self.teacher)
        if row.row_id in self._row_ids:
            return Dropped("duplicate", "an earlier row is the same")
        self._row_ids.add(row.row_id)
        return self.screen.row(row, made=True)

    def call_failures(self) -> Counter[str]:
        """Replies that failed, were refused, empty or cut off, by reason: those with tasks and those with instances."""
        instances = Counter({reason: self.dropped_tasks[reason] for reason in FAILURES})
        cut = Counter(cut_off=self.dropped_instances["cut_off"])
        return +(self.failed + instances + cut)

    @property
    def calls(self) -> int:
        """Replies that were to hold tasks or instances."""
        return self.requests["asked"] + self.kinds.total()

    def tell_alike(self, emit: Emit) -> None:
        """Warns when islands made so many tasks alike that fewer are left than were asked for."""
        wanted, left = rows_of(self.config), self.kinds.total()
        if self.alike and left < wanted and not self.unfinished:
            emit(
                Warning_(
                    f"{left} of the {wanted} tasks asked for are there: islands do not know of each other, and made "
                    f"{self.alike} tasks alike; a higher --rows or fewer islands brings more"
                )
            )

    def counts(self, seeds: int, bad_rows: int) -> dict[str, Any]:
        """For the manifest; see the class for the sums."""
        return {
            "seeds": seeds,
            "requests": {**_numbers(self.requests, "asked", "answered"), "failed": _by_reason(self.failed)},
            "tasks": {
                **_numbers(self.tasks, "proposed", "kept", *(["unpaid"] if self.tasks["unpaid"] else [])),
                "dropped": _by_reason(self.dropped_tasks),
            },
            "kinds": _numbers(self.kinds, "classification", "other", "unclear"),
            "instances": {
                **_numbers(self.instances, "found", "kept"), "dropped": _by_reason(self.dropped_instances),
            },
            "kept": self.rows,
            "bad_rows": bad_rows,
        } | partial_counts(self.of - self.unfinished, self.of)  # fmt: skip


def row_of(instruction: str, instance: Instance, teacher: str) -> SftRow:
    """The dialogue of one instance: the instruction with its input after a blank line, and the output.

    All instances of a task have the id of its instruction as `seed_id`, so they stay together wherever rows are joined.
    """
    asked = Message(
        role="user", content=f"{instruction}\n\n{instance.given}" if instance.given else instruction
    )
    said = [asked, Message(role="assistant", content=instance.output)]
    return SftRow(
        row_id=digest_of([[m.role, m.content] for m in said]).removeprefix("sha256:"),
        prompt_id=prompt_id([asked]),
        messages=said,
        seed_id=_id(instruction),
        model=teacher,
        source=SOURCE,
    )


def _id(instruction: str) -> str:
    return prompt_id([Message(role="user", content=instruction)])


def _numbers(counter: Counter[str], *names: str) -> dict[str, int]:
    return {name: counter[name] for name in names}


def _by_reason(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))
