"""Several versions made into one: plain data joined in order, parts of a step put back together to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.behind import steps_behind
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.merge import join
from zephyrctl.artifacts.parts import is_part, merge_parts, part_file, parts_of, summed, write_in_order
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import remove
from zephyrctl.config import StageConfig
from zephyrctl.errors import IntegrityError, UsageError
from zephyrctl.records import Message, PromptRow, SftRow, Split, prompt_id

Make = Callable[..., Artifact]

PROMPTS = InputRef(role="prompts", ref="p.jsonl", digest="sha256:1", kind="prompts")


class PartsConfig(StageConfig):
    """A stage that can be cut up."""

    stage: ClassVar[str] = "cut"
    knob: int = 1
    shard: str | None = None


def question(number: int) -> PromptRow:
    asked = [Message(role="user", content=f"question {number}")]
    return PromptRow(prompt_id=prompt_id(asked), prompt=asked)


def whole_of(
    store: Store,
    numbers: Sequence[int],
    shard: str | None = None,
    *,
    mine: Callable[[int], bool] = lambda n: True,
    rejected: Callable[[int], bool] = lambda n: n % 4 == 3,
    knob: int = 1,
    name: str = "made",
    prompts: InputRef = PROMPTS,
    bad_rows: int = 1,
) -> Artifact:
    """What a stage makes of some numbers, or one part of it: odd things go to test, some are rejected."""
    config = PartsConfig(shard=shard, knob=knob)
    taken = [(place, n) for place, n in enumerate(numbers) if mine(n)]
    step = Step(Work(store), config, name=name, kind="prompts", inputs=[prompts], world="real")
    rejects = [{"where": f"bad {n}", "reason": "bad row", "detail": "", "row": ""} for n in range(bad_rows)]
    dropped = 0
    with step.open() as staging:
        with part_file(
            staging, shard, whole=len(numbers), mine=len(taken), bad_rows=bad_rows, about="x"
        ) as notes:
            for place, n in taken:
                split: Split = "test" if n % 2 else "train"
                if rejected(n):
                    rejects.append({"where": f"row {n}", "reason": "no", "detail": "", "row": str(n)})
                    dropped += 1
                else:
                    staging.write_rows(split, [question(n)])
                if notes:
                    notes.add(place, **({} if rejected(n) else {"kept": split}))
        staging.write_rejects(rejects)
        staging.counts.update({"prompts": len(taken), "dropped": {"no": dropped}, "bad_rows": bad_rows})
        staging.teachers.append({"model": "m", "calls": len(taken), "cost_usd": 0.5, "tokens": {"prompt": 2}})
        return staging.commit()


def merged(store: Store, parts: Sequence[Artifact], **update: Any) -> StepResult:
    found, config = parts_of(parts, PartsConfig)
    return merge_parts(Work(store), found, config.model_copy(update=update), write_in_order)


def thirds(store: Store, numbers: Sequence[int], **settings: Any) -> list[Artifact]:
    made = []
    for index in (1, 2, 3):
        name = f"made.shard-{index}-of-3"
        belongs = lambda n, index=index: n % 3 == index - 1  # noqa: E731
        made.append(whole_of(store, numbers, f"{index}/3", mine=belongs, name=name, **settings))
    return made


def test_parts_become_what_one_process_makes(store: Store) -> None:
    one = whole_of(store, range(40))
    parts = thirds(store, range(40))
    assert all(is_part(part) for part in parts)
    assert not is_part(one)
    result = merged(store, list(reversed(parts)), out="again")
    both = result.artifact
    assert both is not None
    assert both.digest == one.digest
    for entry in one.manifest.files:
        if entry.path.startswith(("data/", "rejects/")):
            assert (both.path / entry.path).read_bytes() == (one.path / entry.path).read_bytes()
    assert both.manifest.step_key == one.manifest.step_key
    assert both.manifest.counts == one.manifest.counts
    assert both.manifest.teachers == [{"model": "m", "calls": 40, "cost_usd": 1.5, "tokens": {"prompt": 6}}]
    assert both.manifest.config["shard"] is None


def test_the_merged_version_is_the_finished_step(store: Store) -> None:
    parts = thirds(store, range(12))
    result = merged(store, parts)
    assert (result.ref, result.already) == ("made@v1", False)
    step = Step(Work(store), PartsConfig(), name="made", kind="prompts", inputs=[PROMPTS], world="real")
    done = step.done()
    assert done is not None
    assert done.ref == "made@v1"
    assert merged(store, parts).already
    # the calls were made by the steps of the parts
    keys = {part.manifest.step_key for part in parts}
    assert set(steps_behind(store, "made").step_keys) == keys | {step.key}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 10_000), min_size=1, max_size=25, unique=True),
    lost=st.sets(st.integers(0, 10_000), max_size=8),
    parts=st.integers(1, 5),
)
def test_any_cut_merges_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], lost: set[int], parts: int
) -> None:
    store = Store.open(tmp_path_factory.mktemp("cut") / "artifacts")
    rejected = lost.difference({numbers[0]}).__contains__
    one = whole_of(store, numbers, rejected=rejected)
    made = []
    for index in range(1, parts + 1):
        held = [n for n in numbers if n % parts == index - 1]
        if not any(not rejected(n) for n in held):
            if held:
                return  # a part of rejects alone is refused by its own stage
            continue
        part = f"{index}/{parts}"
        made.append(
            whole_of(store, numbers, part, mine=held.__contains__, rejected=rejected, name=f"p{index}")
        )
    both = merged(store, made, out="again").artifact
    assert both is not None
    assert both.digest == one.digest
    assert list(both.rejects()) == list(one.rejects())


def test_missing_double_and_foreign_parts_are_named(store: Store) -> None:
    first, second, third = thirds(store, range(12))
    with pytest.raises(UsageError, match="parts are missing: 2/3"):
        merged(store, [first, third])
    again = whole_of(store, range(12), "2/3", mine=lambda n: n % 3 == 1, name="other")
    with pytest.raises(UsageError, match=r"2/3 is there twice: made.shard-2-of-3@v1, other@v1"):
        merged(store, [first, second, again, third])
    knob = whole_of(store, range(12), "2/3", mine=lambda n: n % 3 == 1, name="knob", knob=2)
    with pytest.raises(UsageError, match=r"knob@v1 is not a part of the same step .*knob is 2, not 1"):
        merged(store, [first, knob, third])
    prompts = PROMPTS.model_copy(update={"digest": "sha256:2"})
    strange = whole_of(store, range(12), "2/3", mine=lambda n: n % 3 == 1, name="strange", prompts=prompts)
    with pytest.raises(UsageError, match="its prompts have another content"):
        merged(store, [first, strange, third])
    half = whole_of(store, range(12), "2/2", mine=lambda n: n % 2 == 1, name="half")
    with pytest.raises(UsageError, match="one of 2 parts, not of 3"):
        merged(store, [first, half, third])
    with pytest.raises(UsageError, match="no part of anything"):
        merged(store, [first, whole_of(store, range(3), name="plain")])


def test_parts_that_hold_the_same_prompt_are_refused(store: Store) -> None:
    first, _, third = thirds(store, range(12))
    greedy = whole_of(store, range(12), "2/3", mine=lambda n: n % 3 != 0, name="greedy")
    with pytest.raises(IntegrityError, match="not in its place"):
        merged(store, [first, greedy, third])


def test_teachers_are_summed_and_what_is_unknown_stays_unknown() -> None:
    one = {"provider": "p", "model": "m", "cost_usd": 1.0, "outcomes": {"text": 2}, "dropped": ["seed"]}
    two = {"provider": "p", "model": "m", "cost_usd": 2.0, "outcomes": {"text": 1, "empty": 1}, "dropped": []}
    other = {"provider": "p", "model": "n", "cost_usd": None}
    assert summed([[one, other], [two], [dict(other, cost_usd=3.0)]]) == [
        {
            "provider": "p",
            "model": "m",
            "cost_usd": 3.0,
            "outcomes": {"text": 3, "empty": 1},
            "dropped": ["seed"],
        },
        {"provider": "p", "model": "n", "cost_usd": None},
    ]


def test_plain_data_is_joined_in_the_order_given(store: Store, make: Make) -> None:
    one = make("one", "prefs", rows=3, test=2, knob=1)
    two = make("two", "prefs", rows=4, test=1, first=2, knob=2)
    result = join(Work(store), [one, two], out="both", note="why")
    both = result.artifact
    assert both is not None
    # two holds 2-5 in train and 6 in test; one held 2 in train, 3 and 4 in test
    train = [row.model_dump()["prompt"][0]["content"] for _, _, row in both.rows("train")]
    test = [row.model_dump()["prompt"][0]["content"] for _, _, row in both.rows("test")]
    assert train == [f"question {n}" for n in (0, 1, 2, 5)]
    assert test == [f"question {n}" for n in (3, 4, 6)]
    counts = both.manifest.counts
    assert (counts["duplicates"], counts["rows"], counts["rejects"]) == (3, 7, {"duplicate": 3})
    assert [(i.role, i.ref) for i in both.manifest.inputs] == [("part", "one@v1"), ("part", "two@v1")]
    assert both.manifest.note == "why"
    assert join(Work(store), [one, two], out="both").already
    assert join(Work(store), [two, one], out="both").ref == "both@v2"


def test_a_prompt_stays_on_one_side(store: Store, make: Make) -> None:
    one = make("one", "sft", rows=2, test=0)
    two = make("two", "sft", rows=0, test=1, first=1, knob=2)
    said = Message(role="assistant", content="something else")
    changed = [
        row.model_copy(update={"row_id": "other", "messages": [row.messages[0], said]})
        for _, _, row in two.rows()
        if isinstance(row, SftRow)
    ]
    step = Step(Work(store), PartsConfig(), name="three", kind="sft", inputs=[], world="real")
    with step.open() as staging:
        staging.write_rows("test", changed)
        three = staging.commit()
    both = join(Work(store), [one, three], out="both").artifact
    assert both is not None
    assert both.splits() == ["train"]
    assert both.count() == 3
    assert both.manifest.counts["moved_to_the_split_of_their_prompt"] == 1


def test_what_cannot_be_joined_is_refused(store: Store, make: Make) -> None:
    prefs, sft = make("prefs", "prefs"), make("dialogues", "sft", knob=2)
    toy = make("toy", "prefs", knob=3, world="sandbox")
    model = make("model", "model", files={"config.json": "{}"}, knob=4)
    other = make("model-2", "model", files={"config.json": "{ }"}, knob=5)
    for given_, why in (
        ([prefs], "nothing to merge"),
        ([prefs, sft], "prefs@v1 is prefs, dialogues@v1 is sft"),
        ([prefs, toy], "prefs@v1 is real, toy@v1 is sandbox"),
        ([model, other], "cannot be merged"),
        ([prefs, toy, toy], "given twice"),
    ):
        with pytest.raises(UsageError, match=why):
            join(Work(store), given_, out="both")


def test_lost_ancestors_are_named(store: Store, make: Make) -> None:
    first = make("first", "prompts")
    given_ = InputRef(role="prompts", ref=str(first.ref), digest=first.digest, kind="prompts")
    second = make("second", "prompts", inputs=[given_, PROMPTS], first=50)
    found = steps_behind(store, "second")
    assert found.step_keys == [second.manifest.step_key, first.manifest.step_key]
    assert (found.ref, found.lost) == ("second@v1", [])
    remove(store, "first@v1", yes=True)
    assert steps_behind(store, "second").lost == ["first@v1"]
