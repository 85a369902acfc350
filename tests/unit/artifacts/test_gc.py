"""What nothing needs is found and taken away; what somebody needs, or works on, is not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.gc import find_garbage, take_away
from zephyrctl.artifacts.lock import hold
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import PARTIAL, Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import tag
from zephyrctl.config import StageConfig
from zephyrctl.records import Message, PromptRow, prompt_id

DAY = 86400.0


class GcConfig(StageConfig):
    """A stage that exists for these tests."""

    stage: ClassVar[str] = "kept"
    knob: int = 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "artifacts")


def made(
    store: Store, name: str, knob: int = 1, inputs: tuple[InputRef, ...] = (), partial: bool = False
) -> Artifact:
    asked = [Message(role="user", content=f"question {knob}")]
    work = Work(store, again=True)
    step = Step(work, GcConfig(knob=knob), name=name, kind="prompts", inputs=inputs, world="real")
    with step.open() as staging:
        staging.write_rows("train", [PromptRow(prompt_id=prompt_id(asked), prompt=asked)])
        if partial:
            staging.counts[PARTIAL] = True
        return staging.commit()


def abandoned(store: Store, name: str) -> Path:
    folder = store.work / name
    (folder / "staging").mkdir(parents=True)
    (folder / "staging" / "half.parquet").write_bytes(b"x" * 1000)
    (folder / "lock").touch()
    return folder


def later(days: float) -> float:
    return time.time() + days * DAY


def test_abandoned_work_is_found_after_its_days_and_only_then_taken(store: Store) -> None:
    store.prepare()
    folder = abandoned(store, "gen-sft-0123")
    assert find_garbage(store) == []
    (found,) = find_garbage(store, now=later(8))
    assert (found.what, found.name, found.bytes) == ("abandoned work", "gen-sft-0123", 1000)
    assert folder.exists()
    assert take_away(store, [found]) == 1000
    assert not folder.exists()


def test_work_that_a_process_holds_is_left_alone(store: Store) -> None:
    store.prepare()
    folder = abandoned(store, "gen-sft-0123")
    (found,) = find_garbage(store, days=0, now=later(1))
    with hold(folder / "lock"):
        assert find_garbage(store, days=0, now=later(1)) == []
        assert take_away(store, [found]) == 0
    assert folder.exists()


def test_a_partial_version_goes_when_the_finished_one_is_there(store: Store) -> None:
    first = made(store, "data", partial=True)
    assert find_garbage(store) == []
    made(store, "data")
    (found,) = find_garbage(store)
    assert (found.what, found.name) == ("partial", str(first.ref))
    take_away(store, [found])
    assert store.numbers("data") == [2]
    (trash,) = find_garbage(store, now=later(8))
    assert trash.what == "trash"


def test_a_partial_version_that_something_was_made_from_stays(store: Store) -> None:
    first = made(store, "data", partial=True)
    made(store, "data")
    used = InputRef(role="prompts", ref=str(first.ref), digest=first.digest, kind="prompts")
    made(store, "other", inputs=(used,))
    assert find_garbage(store) == []


def test_unused_versions_only_when_asked_and_never_what_is_needed(store: Store) -> None:
    old, tagged, needed = made(store, "data", 1), made(store, "data", 2), made(store, "data", 3)
    made(store, "data", 4)
    tag(store, str(tagged.ref), "good")
    made(
        store,
        "other",
        inputs=(InputRef(role="prompts", ref=str(needed.ref), digest=needed.digest, kind="prompts"),),
    )
    assert find_garbage(store) == []
    assert [item.name for item in find_garbage(store, unused=True)] == [str(old.ref)]


def test_the_cache_of_hashes_is_no_work(store: Store) -> None:
    store.prepare()
    assert store.cache.folder is not None
    store.cache.folder.mkdir(parents=True)
    (store.cache.folder / "one").write_text("x")
    (found,) = find_garbage(store, now=later(8))
    assert (found.what, found.bytes) == ("cache", 1)


def test_links_in_abandoned_work_are_not_followed(store: Store, tmp_path: Path) -> None:
    store.prepare()
    outside = tmp_path / "precious"
    outside.write_text("keep")
    folder = abandoned(store, "sft-0123")
    (folder / "link").symlink_to(outside)
    take_away(store, find_garbage(store, days=0, now=later(1)))
    assert (folder.exists(), outside.read_text()) == (False, "keep")
