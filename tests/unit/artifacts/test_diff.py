"""What tells two versions apart is counted row by row, whatever order they are stored in."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.diff import diff
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.config import StageConfig
from zephyrctl.errors import UsageError
from zephyrctl.records import Message, PreferenceRow, Record, SftRow, prompt_id


class DiffConfig(StageConfig):
    """A stage that exists for these tests."""

    stage = "compared"
    knob: int = 1


def pair(number: int, better: str = "good", score: float = 8.0) -> PreferenceRow:
    asked = [Message(role="user", content=f"question {number}")]
    worse = "bad" if better == "good" else "good"
    return PreferenceRow(
        prompt_id=prompt_id(asked),
        prompt=asked,
        chosen=[Message(role="assistant", content=f"{better} {number}")],
        rejected=[Message(role="assistant", content=f"{worse} {number}")],
        score_chosen=score,
    )


def made(store: Store, rows: Sequence[tuple[str, Record]], kind: str = "prefs", knob: int = 1) -> Artifact:
    step = Step(Work(store, again=True), DiffConfig(knob=knob), name=kind, kind=kind, inputs=[], world="real")
    with step.open() as staging:
        for split, row in rows:
            staging.write_rows(split, [row])
        return staging.commit()


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("diff") / "artifacts")


def test_rows_are_told_apart_by_their_ids(store: Store) -> None:
    before = made(store, [("train", pair(n)) for n in range(6)])
    rows = [("train", pair(1)), ("test", pair(2)), ("train", pair(3, "bad")), ("train", pair(4, score=9.0))]
    after = made(store, [*rows, ("train", pair(5)), ("train", pair(9))], knob=2)
    found = diff(before, after).document
    counted = {name: found["rows"][name] for name in ("added", "removed", "changed", "same", "moved")}
    assert counted == {"added": 1, "removed": 1, "changed": 2, "same": 3, "moved": 1}
    assert (found["rows"]["decided"], found["rows"]["flipped"]) == (5, 1)
    assert found["rows"]["examples"]["removed"] == [pair(0).prompt_id]
    assert found["rows"]["examples"]["flipped"] == [pair(3).prompt_id]
    assert found["rows"]["changed_columns"] == {"chosen": 1, "rejected": 1, "score_chosen": 1}
    assert found["settings"]["knob"] == {"from": 1, "to": 2}
    assert found["counts"]["splits.test"] == {"from": None, "to": 1}
    assert found["distributions"]["rows in train"] == {"from": 6, "to": 5}
    assert found["distributions"]["mean score of chosen"] == {"from": 8.0, "to": 8.1667}


def test_equal_content_has_no_differences(store: Store) -> None:
    one = made(store, [("train", pair(1)), ("train", pair(2))])
    two = made(store, [("train", pair(1)), ("train", pair(2))])
    found = diff(one, two)
    assert found.document["same_content"]
    assert (found.tables, "rows" in found.document) == ([], False)


def test_another_order_changes_no_row(store: Store) -> None:
    one = made(store, [("train", pair(n)) for n in range(5)])
    two = made(store, [("train", pair(n)) for n in reversed(range(5))])
    rows = diff(one, two).document["rows"]
    assert (rows["same"], rows["added"], rows["removed"], rows["changed"]) == (5, 0, 0, 0)


def test_several_pairs_of_one_prompt_are_matched_one_by_one(store: Store) -> None:
    double = [("train", pair(1)), ("train", pair(1, score=7.0)), ("train", pair(2))]
    rows = diff(made(store, double), made(store, double[:1] + double[2:])).document["rows"]
    assert (rows["same"], rows["removed"], rows["changed"]) == (2, 1, 0)


def test_all_pairs_of_a_prompt_hold_the_one_pair_of_it(store: Store) -> None:
    def of(chosen: str, rejected: str) -> PreferenceRow:
        sides = {name: [Message(role="assistant", content=text)] for name, text in
                 (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
        return pair(1).model_copy(update=sides)

    one = made(store, [("train", of("a", "d"))])
    every = made(store, [("train", of(*sides)) for sides in ("bc", "cd", "da", "ab")], knob=2)
    same = made(store, [("train", of(*sides)) for sides in ("bc", "cd", "ad", "ab")], knob=3)
    rows = diff(one, same).document["rows"]
    assert (rows["same"], rows["added"], rows["changed"], rows["flipped"]) == (1, 3, 0, 0)
    rows = diff(one, every).document["rows"]
    assert (rows["same"], rows["added"], rows["changed"], rows["flipped"]) == (0, 3, 1, 1)


def test_different_kinds_have_nothing_in_common(store: Store) -> None:
    said = [Message(role="user", content="q"), Message(role="assistant", content="a")]
    row = SftRow(row_id="1", prompt_id=prompt_id(said[:1]), messages=said)
    with pytest.raises(UsageError, match="nothing in common"):
        diff(made(store, [("train", pair(1))]), made(store, [("train", row)], kind="sft"))
