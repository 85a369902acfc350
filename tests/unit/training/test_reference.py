"""What the reference says: named by what it depends on and nothing else, stored exactly, handed back in any order."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError, NotFinite
from zephyrctl.events import Recorder
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.reference import (
    Reference,
    Spoken,
    describe,
    difference,
    numerics,
    pair_digest,
    read_reference,
    reference_step,
    sample,
    write_reference,
)
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairTokens

IDS = st.lists(st.integers(0, 1 << 40), max_size=4)
PAIRS = [PairTokens([1, 2], [3], [4, 5]), PairTokens([1], [2, 3], [4, 5]), PairTokens([1, 2], [3, 4], [5])]
SAID = Spoken(([-1.1, -2.2, -1 / 3], [-4.0, -5.0, -1e-17]), ([-1.1], [-4.0]))


@pytest.fixture
def init(tmp_path: Path) -> ModelSource:
    return ModelSource(tmp_path / "My model", "sha256:" + "a" * 64, "./m", "real", None)


@pytest.fixture
def make(tmp_path: Path, init: ModelSource) -> Any:
    def reference(*, train: Any = PAIRS, test: Any = PAIRS[:1], **changes: Any) -> Reference:
        config = TrainingConfig(**{k: v for k, v in changes.items() if k in TrainingConfig.model_fields})
        choice = EngineChoice(**{k: v for k, v in changes.items() if k in EngineChoice.__dataclass_fields__})
        source = replace(init, digest=changes.get("digest", init.digest))
        work = Work(Store.open(tmp_path / "artifacts"), emit=changes.get("emit") or Recorder())
        return reference_step(work, config, choice, source, train, test, "real")

    return reference


@given(st.builds(PairTokens, IDS, IDS, IDS), st.builds(PairTokens, IDS, IDS, IDS))
def test_equal_ids_have_one_name_and_others_another(one: PairTokens, other: PairTokens) -> None:
    assert pair_digest(one) == pair_digest(
        PairTokens(*map(list, (one.prompt_ids, one.chosen_ids, one.rejected_ids)))
    )
    assert (pair_digest(one) == pair_digest(other)) is (one == other)


def test_where_an_answer_begins_is_part_of_the_name() -> None:
    assert len({pair_digest(pair) for pair in PAIRS}) == 3


def test_numbers_are_kept_exactly(tmp_path: Path) -> None:
    write_reference(tmp_path / "said", SAID)
    assert read_reference(tmp_path / "said") == SAID


def test_what_was_said_is_found_again_in_any_order(make: Any, tmp_path: Path) -> None:
    seen = Recorder()
    first = make()
    assert first.known(tmp_path / "a") is None
    assert describe(first.artifact) == {}
    write_reference(tmp_path / "said", SAID)
    first.keep(tmp_path / "said")
    assert first.artifact.kind == "logprobs"
    assert first.artifact.manifest.counts["rows"] == 3  # the held-out pair stands in both splits
    turned = make(train=PAIRS[::-1], test=PAIRS[2:], emit=seen)
    folder = turned.known(tmp_path / "b")
    said = read_reference(folder)
    assert said.train == (SAID.train[0][::-1], SAID.train[1][::-1])
    assert said.test == ([SAID.train[0][2]], [SAID.train[1][2]])
    assert "not asked again" in " ".join(seen.texts())
    assert describe(turned.artifact)["reference"]["ref"] == str(first.artifact.ref)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (
            {"lr": 1e-6, "epochs": 3, "seed": 7, "batch_size": 4, "micro_batch": 1, "scheduler": "linear"},
            True,
        ),
        ({"lora": True, "why": "for the test"}, True),
        ({"name": "ddp", "processes": 8}, True),
        ({"dtype": "fp32"}, False),
        ({"digest": "sha256:" + "b" * 64}, False),
        ({"attention": "eager"}, False),
        ({"device": "cuda"}, False),
        ({"name": "zero3", "processes": 2}, False),  # rounds the weights, where autocast rounds products
        ({"name": "fsdp2", "processes": 2}, False),
        ({"name": "zero3", "dtype": "fp32", "processes": 2}, False),
        ({"lora": True, "quantize": "nf4"}, False),
        ({"train": PAIRS[:2]}, False),
        ({"train": PAIRS[:2], "test": PAIRS[2:]}, True),
    ],
)
def test_what_a_reference_s_word_depends_on(changes: dict[str, Any], same: bool, make: Any) -> None:
    assert (make(**changes).step.key == make().step.key) is same


@pytest.mark.parametrize(
    ("folder", "ref", "name"),
    [
        ("/m/Über Modell", "./Über Modell", "ref-ber-modell"),
        ("/m/" + "x" * 80, "./" + "x" * 80, "ref-" + "x" * 59),
        ("/m/模型", "./模型", "ref-model"),
        ("/hub/models--org--a/snapshots/01ab", "hf://org/A-7B@01ab", "ref-a-7b"),
        ("/site-packages/zephyrctl/sandbox/base", "sandbox", "ref-sandbox"),
    ],
)
def test_any_folder_s_name_makes_one(
    folder: str, ref: str, name: str, tmp_path: Path, init: ModelSource
) -> None:
    work = Work(Store.open(tmp_path / "artifacts"))
    source = replace(init, path=Path(folder), ref=ref)
    made = reference_step(work, TrainingConfig(), EngineChoice(), source, PAIRS, [], "real")
    assert made.step.name == name


def test_numbers_that_are_none_are_not_kept(make: Any, tmp_path: Path) -> None:
    write_reference(tmp_path / "said", replace(SAID, test=([math.nan], [-4.0])))
    first = make()
    with pytest.raises(NotFinite, match="1 of 4 pairs"):
        first.keep(tmp_path / "said")
    assert first.step.done() is None


def test_of_two_runs_at_a_time_both_name_the_one_that_is_kept(make: Any, tmp_path: Path) -> None:
    seen = Recorder()
    one, other, third = make(), make(emit=seen), make()
    write_reference(tmp_path / "said", SAID)
    one.keep(tmp_path / "said")
    other.keep(tmp_path / "said")
    assert other.artifact is not None
    assert describe(other.artifact) == describe(one.artifact)
    assert "not kept by this run" in " ".join(seen.texts())
    write_reference(tmp_path / "said", replace(SAID, test=([-1.2], [-4.0])))
    third.keep(tmp_path / "said")  # sums in another order: what this run trains with is not what is kept
    assert third.artifact is None


def test_a_damaged_artifact_says_how_to_get_another(make: Any, tmp_path: Path) -> None:
    write_reference(tmp_path / "said", SAID)
    first = make()
    first.keep(tmp_path / "said")
    [rows] = (first.artifact.path / "data").iterdir()
    rows.chmod(0o644)
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(IntegrityError, match="ref-m@v1") as caught:
        make().known(tmp_path / "again")
    assert "zephyrctl artifacts rm ref-m@v1 --yes" in str(caught.value.hint)
    assert "made by `zephyrctl dpo`" in (first.artifact.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "rows"), [(1, [3]), (2, [2, 3]), (3, [2, 0, 3]), (4, [2, 0, 1, 3]), (9, [2, 0, 1, 3])]
)
def test_a_sample_reaches_from_the_shortest_pair_to_the_longest(count: int, rows: list[int]) -> None:
    pairs = [PairTokens([1], [2] * n, [3]) for n in (4, 5, 1, 9)]
    assert sample(pairs, count) == rows


def test_in_float32_the_engine_makes_no_difference() -> None:
    config = TrainingConfig(dtype="fp32")
    assert numerics(config, EngineChoice("zero3", 2)) == numerics(config, EngineChoice())
    assert numerics(config, EngineChoice("fsdp2", 2)) == numerics(config, EngineChoice())
    assert numerics(TrainingConfig(), EngineChoice("zero3", 2)) != numerics(TrainingConfig(), EngineChoice())


def test_a_store_that_lacks_a_pair_is_refused(make: Any, tmp_path: Path) -> None:
    first = make()
    write_reference(tmp_path / "said", Spoken((SAID.train[0][:2], SAID.train[1][:2]), SAID.test))
    lacking = Reference(first.step, PAIRS[:2], PAIRS[:1])
    lacking.keep(tmp_path / "said")
    with pytest.raises(IntegrityError, match="lack 1 of 3 pairs"):
        make().known(tmp_path / "again")


def test_the_difference_is_per_token() -> None:
    known, counts = [[-10.0, -4.0], [-3.0, -8.0]], [[10, 4], [3, 2]]
    assert difference(known, known, counts, "fp32") == (0.0, 1e-5)
    worst, allowed = difference([[-10.0, -4.0], [-3.0, -8.1]], known, counts, "bf16")
    assert worst == pytest.approx(0.05)
    assert worst > allowed
    worst, allowed = difference([[-10.0, math.nan], [-3.0, -8.0]], known, counts, "bf16")
    assert worst > allowed
