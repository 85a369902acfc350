"""The calls that are planned are those that a run without failures makes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, Sampling
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.records import Message, PromptRow, prompt_id
from zephyrctl.stages.gen_sft.calls import draw
from zephyrctl.stages.gen_sft.chains import Dialogue, grow

TEACHER = Seat(parse_model("sandbox"), SandboxProvider("teacher"))


def seed(number: int, follow_ups: int) -> Seed:
    prompt = [Message(role="user", content=f"question {number} " + "long " * number)]
    turns = [f"and {i}?" for i in range(follow_ups)]
    return Seed("x", "train", PromptRow(prompt_id=prompt_id(prompt), prompt=prompt, follow_ups=turns))


@given(st.lists(st.integers(0, 3), max_size=8), st.integers(0, 3))
def test_calls_and_texts_are_counted_as_they_are_made(follow_ups: list[int], rounds: int) -> None:
    seeds = [seed(number, n) for number, n in enumerate(follow_ups)]
    made: Counter[str] = Counter()
    written: Counter[str] = Counter()

    def ask(dialogues: Sequence[Dialogue], purpose: str, task: str) -> list[Answer]:
        made[purpose] += len(dialogues)
        written[purpose] += sum(len(m.content) for d in dialogues for m in d)
        texts = [f"{len(d)} {d[-1].content[-40:]} {made.total()}" for d in dialogues]
        return [Answer(t, "text", "stop", "m", None, "k", False) for t in texts]

    grow(seeds, rounds, ask, novelty=1.0)
    sketch = Sketch()
    draw(sketch, seeds, TEACHER, rounds, Sampling(max_tokens=64))
    planned: dict[str, Any] = {part.purpose: part for part in sketch.parts}
    assert {name: part.calls for name, part in planned.items()} == {k: v for k, v in made.items() if v}
    for name, part in planned.items():
        assert part.prompt_tokens.high >= written[name] / 4
