"""How many calls a bootstrap makes, and how long they are, before any is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zephyrctl.asking.estimate import size, text_tokens
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.self_instruct.instances import INSTANCES, KIND
from zephyrctl.stages.gen_sft.self_instruct.islands import SHOWN, TASKS, Rules
from zephyrctl.stages.gen_sft.self_instruct.requests import WANTED, Examples, tasks_request

NEW_SHARE = 0.6
"""The share of tasks that is taken to be usable and new, where nothing was made yet."""
_LEAST_NEW = 0.2
_SAMPLE = (Message(role="user", content="x"),)


def draw(
    sketch: Sketch,
    islands: Sequence[int],
    rules: Rules,
    teacher: Seat,
    samplings: dict[str, Sampling],
    examples: Examples,
) -> None:
    """Requests for tasks until every island has as many as it is to make; a request for kind and instances of each.

    Tasks are taken to be as long as the seeds are on average. `samplings` are the sampling settings by purpose.
    """
    made = len(islands) * rules.target
    task = "x" * (sum(map(size, rules.seeds)) // len(rules.seeds))
    texts = {
        TASKS: tasks_request([task] * min(SHOWN, len(rules.seeds))),
        KIND: examples.kind_request(task),
        INSTANCES: examples.instances_request(task, 1, classification=False),
    }
    requests = math.ceil(made / (WANTED * NEW_SHARE))
    calls = {TASKS: requests, KIND: made, INSTANCES: made}
    most = {TASKS: math.ceil(made / (WANTED * _LEAST_NEW)), KIND: made, INSTANCES: made}
    for purpose, text in texts.items():
        sketch.add(
            "teacher",
            teacher.provider,
            purpose,
            calls=calls[purpose],
            prompts=text_tokens(size(text)) * calls[purpose],
            reply=sketch.reply(teacher.provider, Ask(_SAMPLE, samplings[purpose], purpose=purpose)),
            most=most[purpose],
        )
