"""What a bootstrap is estimated to ask."""

import pytest

from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Sampling
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.stages.gen_sft.self_instruct.calls import NEW_SHARE, draw
from zephyrctl.stages.gen_sft.self_instruct.islands import Rules
from zephyrctl.stages.gen_sft.self_instruct.requests import WANTED, Examples

TEACHER = Seat(parse_model("sandbox"), SandboxProvider("teacher"))


@pytest.mark.parametrize(("islands", "target"), [(1, 1), (1, 480), (4, 120)])
def test_requests_follow_from_the_share_that_is_new(islands: int, target: int) -> None:
    sketch = Sketch()
    seeds = tuple(f"Seed {n} about tea and rain" for n in range(20))
    samplings = {name: Sampling(max_tokens=64) for name in ("tasks", "kind of task", "instances")}
    rules = Rules(seeds, target, 0.7, 1)
    draw(sketch, list(range(islands)), rules, TEACHER, samplings, Examples([]))
    parts = {part.purpose: part for part in sketch.parts}
    made = islands * target
    assert parts["kind of task"].calls == parts["instances"].calls == made
    tasks = parts["tasks"]
    assert tasks.calls - 1 < made / (WANTED * NEW_SHARE) <= tasks.calls
    assert tasks.most > tasks.calls or made == 1
    shown = 8 * len(seeds[0])
    assert tasks.prompt_tokens.high > shown / 2 * tasks.calls
