"""From new tasks to finished instances (Self-Instruct, section 2.2).

First whether a task is a classification task, then its instances: with the output first for classification, so that not
all of them carry one label, and with the input first for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.seats import trouble
from zephyrctl.providers.base import UNPAID, Answer, Failure
from zephyrctl.stages.gen_sft.self_instruct.islands import AskAll, Task
from zephyrctl.stages.gen_sft.self_instruct.reading import read_kind
from zephyrctl.stages.gen_sft.self_instruct.requests import Examples

KIND, INSTANCES = "kind of task", "instances"


def finish(tasks: Sequence[Task], examples: Examples, count: int, ask: AskAll) -> None:
    """Asks for the kind of every task and for up to `count` instances of it, and notes both in the task.

    A kind that cannot be read is `unclear`, and the task is treated as no classification task. A task whose reply was
    not paid for (a run that only replays) keeps `unpaid` as its trouble.
    """
    if not tasks:
        return
    replies = ask([examples.kind_request(task.instruction) for task in tasks], KIND, "kinds of tasks")
    for task, reply in zip(tasks, replies, strict=True):
        if isinstance(reply, Failure) and reply.reason == UNPAID:
            task.trouble = trouble(reply)
        else:
            task.kind = read_kind(reply.text) if isinstance(reply, Answer) else "unclear"
    known = [task for task in tasks if task.trouble is None]
    requests = [
        examples.instances_request(task.instruction, count, classification=task.kind == "classification")
        for task in known
    ]
    for task, reply in zip(known, ask(requests, INSTANCES, "instances of tasks"), strict=True):
        _note(task, reply)


def _note(task: Task, reply: Answer | Failure) -> None:
    cut = isinstance(reply, Answer) and reply.outcome == "length"
    task.trouble = None if cut else trouble(reply)
    if isinstance(reply, Answer) and task.trouble is None:
        task.reply, task.cut = reply.text, cut
