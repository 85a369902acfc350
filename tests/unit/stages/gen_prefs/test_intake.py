"""What is sorted out before anything is asked: duplicates, contaminated prompts, what the filters drop or change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.shards import Shard
from zephyrctl.curation.base import Dialogue, Dropped
from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder
from zephyrctl.records import Completion, Message, PromptRow, prompt_id
from zephyrctl.stages.gen_prefs.answered import LeftOut
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.existing import Given
from zephyrctl.stages.gen_prefs.intake import Prompts, Screen, open_screen, sorted_out


class Suites:
    """Whatever asks for the capital of France is contaminated."""

    def inputs(self) -> list[InputRef]:
        return [InputRef(role="suite", ref="quiz", digest="sha256:q", kind="suite")]

    def sift(self, seeds: Sequence[Seed], *, drop: bool) -> tuple[list[Seed], list[dict[str, str]]]:
        hit = [seed for seed in seeds if "capital of France" in seed.row.prompt[0].content]
        kept = [seed for seed in seeds if seed not in hit or not drop]
        rejects = [{"where": s.where, "reason": "contaminated", "detail": "quiz", "row": "{}"} for s in hit]
        return kept, rejects if drop else []

    def record(self) -> dict[str, Any]:
        return {"compared": 0}


class Filters:
    """Drops what is long, cuts what has a semicolon, writes the rest in lower case."""

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        text = dialogue[-1].content
        if len(text) > 40:
            return Dropped("too_long", "over 40")
        if ";" in text:
            return [[m] for m in dialogue] * 2
        return [[m.model_copy(update={"content": m.content.lower()}) for m in dialogue]]

    def counts(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> list[InputRef]:
        return []


TEXTS = ["Sing.", "sing.", "Sing.", "What is the capital of France?", "x" * 41, "one; two", "Dance."]


def seeds(*texts: str) -> list[Seed]:
    made = []
    for i, text in enumerate(texts):
        prompt = [Message(role="user", content=text)]
        row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt)
        made.append(Seed(f"f:{i + 1}", "train", row, i))
    return made


def screen(**more: Any) -> Screen:
    return Screen(Filters(), suites=Suites(), **more)  # type: ignore[arg-type]


def told(fates: Sequence[Seed | LeftOut]) -> list[str]:
    return [f.row["reason"] if isinstance(f, LeftOut) else f.row.prompt[0].content for f in fates]


def test_duplicates_then_suites_then_filters_then_what_has_become_equal() -> None:
    fates = screen().sift(seeds(*TEXTS))
    assert told(fates) == ["sing.", "duplicate", "duplicate", "contaminated", "too_long", "cut_up", "dance."]
    changed = fates[0]
    assert isinstance(changed, Seed)
    assert changed.row.prompt_id == prompt_id(changed.row.prompt)
    assert (changed.position, changed.where, changed.split) == (0, "f:1", "train")
    left = [fate for fate in fates if isinstance(fate, LeftOut)]
    assert [fate.item.position for fate in left] == [1, 2, 3, 4, 5]


def test_contaminated_prompts_can_be_kept() -> None:
    assert "what is the capital of france?" in told(screen(drop=False).sift(seeds(*TEXTS)))


def test_a_filter_that_learns_from_all_rows_is_refused(tmp_path: Path) -> None:
    config = GenPrefsConfig(teacher="sandbox", filters=["truecase"])
    with pytest.raises(UsageError, match="learns from all rows") as caught:
        open_screen(config, Work(Store.open(tmp_path / "artifacts"), Recorder()), "real")
    assert "import FILE --as prompts --filter truecase" in str(caught.value.hint)


def test_a_prompt_with_completions_is_dropped_or_left_as_it_was_asked() -> None:
    rows = [
        Given(s.where, s.split, s.row, s.position, (Completion(completion_id="c", model="m", text="t"),))
        for s in seeds(*TEXTS)
    ]
    fates = screen().sift(rows)
    assert told(fates)[0] == "Sing."
    assert isinstance(fates[0], Given)
    assert told(fates)[4] == "too_long"


class Intake:
    """Prompts at hand."""

    world = "real"
    named = "here"
    inputs: list[InputRef] = []  # noqa: RUF012
    rejects: list[dict[str, Any]] = [{"where": "f:9"}]  # noqa: RUF012
    shares: list[dict[str, Any]] = []  # noqa: RUF012

    def load(self, *, seed: int, test_fraction: float) -> list[Seed]:
        return seeds(*(f"Prompt number {i % 30} to Answer." for i in range(40)), *TEXTS)


def parts_of(count: int) -> list[Prompts]:
    parts = []
    for index in range(1, count + 1):
        shard = None if count == 1 else str(Shard(index, count))
        config = GenPrefsConfig(teacher="sandbox", shard=shard)
        parts.append(sorted_out(config, Intake(), screen()))
    return parts


def test_every_part_decides_as_the_whole_does() -> None:
    [whole] = parts_of(1)
    parts = parts_of(3)
    assert {part.whole for part in parts} == {whole.whole} == {47}
    assert sum(part.taken for part in parts) == whole.taken == 47
    fresh = sorted((s for part in parts for s in part.fresh), key=lambda s: s.position)
    left = sorted((f for part in parts for f in part.left_out), key=lambda f: f.item.position)
    assert (fresh, left) == (whole.fresh, whole.left_out)
    assert len(fresh) == 32
    assert whole.bad_rows == [{"where": "f:9"}]
