"""Who of the pool answers is drawn by hash alone; the pool where none is named follows the stated rule."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts.step import Step, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.line_up import line_up
from zephyrctl.asking.seats import Seat
from zephyrctl.config import StageConfig
from zephyrctl.errors import AuthError, UsageError
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.site import Site
from zephyrctl.stages.gen_prefs.pooling import (
    SANDBOX_POOL,
    Member,
    chosen,
    default_pool,
    members_of,
    newest_checkpoint,
    take_seats,
)

NAMES = [f"m{i}" for i in range(17)]
OPENAI, ANTHROPIC = (line_up().vendors[name] for name in ("openai", "anthropic"))


@dataclass(frozen=True)
class Stub:
    label: str
    world: str = "real"


def members(*names: str) -> list[Member]:
    return members_of([Seat(parse_model(f"box:{n}"), Stub(n.split("?")[0])) for n in names])  # type: ignore[arg-type]


def labels(found: list[Member]) -> list[str]:
    return [member.label for member in found]


@given(
    st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 5),
    st.text("abc", max_size=4),
    st.randoms(use_true_random=False),
)
def test_the_draw_does_not_depend_on_the_order_of_the_pool(
    names: list[str], wanted: int, seed: int, prompt: str, random: object
) -> None:
    mixed = list(names)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = (
        chosen(members(*names), wanted, seed, prompt),
        chosen(members(*mixed), wanted, seed, prompt),
    )
    assert set(labels(one)) == set(labels(other))
    assert len(one) == min(wanted, len(names)) == len(set(labels(one)))
    assert labels(one) == [name for name in names if name in labels(one)]


@given(
    st.lists(st.sampled_from(NAMES), unique=True, min_size=3, max_size=12),
    st.integers(1, 4),
    st.integers(0, 50),
)
def test_a_smaller_pool_keeps_whom_it_still_has(names: list[str], wanted: int, seed: int) -> None:
    before = labels(chosen(members(*names), wanted, seed, "p"))
    gone = names[0]
    after = labels(chosen(members(*names[1:]), wanted, seed, "p"))
    assert set(before) - {gone} <= set(after)
    if gone not in before:
        assert after == before


def test_every_member_and_every_pair_is_drawn_equally_often() -> None:
    pool = members(*NAMES[:6])
    prompts = 6000
    alone: Counter[str] = Counter()
    pairs: Counter[tuple[str, ...]] = Counter()
    for i in range(prompts):
        drawn = labels(chosen(pool, 2, 42, f"prompt {i}"))
        alone.update(drawn)
        pairs[tuple(drawn)] += 1
    # five standard deviations of a binomial count
    assert all(abs(n - prompts / 3) < 5 * (prompts * 2 / 9) ** 0.5 for n in alone.values())
    assert len(pairs) == 15
    assert all(abs(n - prompts / 15) < 5 * (prompts * 14 / 225) ** 0.5 for n in pairs.values())


def test_labels_tell_sampling_settings_apart_whatever_their_order() -> None:
    found = members("a", "a?temperature=0.20&top_p=1", "a?top_p=1.0&temperature=0.2", "a", "a?max_tokens=9")
    assert labels(found) == [
        "a",
        "a?temperature=0.2&top_p=1",
        "a?temperature=0.2&top_p=1",
        "a",
        "a?max_tokens=9",
    ]
    assert [member.copy for member in found] == [0, 0, 1, 1, 0]
    assert [list(member.draws(2)) for member in found[2:4]] == [[2, 3], [2, 3]]


def test_places_of_one_model_share_what_it_holds(tmp_path: Path) -> None:
    specs = [parse_model(f"sandbox:{n}") for n in ("pool-a", "pool-b", "pool-a?temperature=0.5")]
    seats = take_seats(Store.open(tmp_path), specs, Site())
    assert seats[0].provider is seats[2].provider is not seats[1].provider
    assert seats[2].spec.params == {"temperature": 0.5}


def pool_of(
    tmp_path: Path, judge: str | None = "gpt-4", world: str = "real", size: int = 4
) -> tuple[list[str], str]:
    spec = None if judge is None else parse_model(judge)
    return default_pool(Store.open(tmp_path / "artifacts"), Site(), judge=spec, world=world, size=size)


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")


@pytest.fixture
def anthropic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")


def test_without_keys_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(AuthError) as caught:
        pool_of(tmp_path, judge="box:llama")
    assert caught.value.exit_code == 6
    for word in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "--pool"):
        assert word in caught.value.message + str(caught.value.hint)


def test_a_key_that_cannot_be_one_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(AuthError, match="OPENAI_API_KEY"):
        pool_of(tmp_path)


@pytest.mark.usefixtures("openai")
def test_one_vendor_gives_four_of_its_models_from_strong_to_weak(tmp_path: Path) -> None:
    pool, told = pool_of(tmp_path)
    assert len(set(pool)) == 4
    assert [pool[0], pool[-1]] == [OPENAI[0], OPENAI[-1]]
    assert pool == sorted(pool, key=OPENAI.index)
    assert f"of the line-up of {line_up().date}, from openai" in told


@pytest.mark.usefixtures("openai", "anthropic")
def test_two_vendors_take_turns_from_strong_to_weak(tmp_path: Path) -> None:
    pool, told = pool_of(tmp_path)
    assert [parse_model(name).where for name in pool] == ["openai", "anthropic"] * 2
    ranks = [(OPENAI if name in OPENAI else ANTHROPIC).index(name) for name in pool]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (0, len(ANTHROPIC) - 1)
    assert "openai and anthropic" in told


@pytest.mark.usefixtures("openai")
def test_the_judge_is_in_the_pool_only_where_there_are_too_few_others(tmp_path: Path) -> None:
    for judge in (OPENAI[1], f"{OPENAI[1]}-2026-10-01"):
        pool, _ = pool_of(tmp_path, judge=judge)
        assert OPENAI[1] not in pool
        assert len(set(pool)) == 4
    with_judge, _ = pool_of(tmp_path, judge=OPENAI[1], size=len(OPENAI))
    assert set(with_judge) == set(OPENAI)


@pytest.mark.usefixtures("openai")
def test_no_model_is_taken_twice_to_fill_the_pool(tmp_path: Path) -> None:
    size = len(OPENAI) + 2
    pool, told = pool_of(tmp_path, size=size)
    assert sorted(pool) == sorted(OPENAI)
    assert f"only {len(OPENAI)} different models, not {size}" in told


def test_the_sandbox_brings_its_own_and_needs_no_key(tmp_path: Path) -> None:
    assert pool_of(tmp_path, judge="sandbox", world="sandbox")[0] == list(SANDBOX_POOL)


class Trained(StageConfig):
    stage = "sft"


def train(tmp_path: Path, name: str, world: str, created: str, monkeypatch: pytest.MonkeyPatch) -> str:
    from zephyrctl.artifacts import writer

    monkeypatch.setattr(writer, "provenance", lambda attempt: {"created": created, "attempt": attempt})
    work = Work(Store.open(tmp_path / "artifacts"))
    step = Step(work, Trained(seed=len(name)), name=name, kind="model", inputs=[], world=world)  # type: ignore[arg-type]
    with step.open() as staging:
        staging.write_text("config.json", "{}")
        return str(staging.commit().ref)


@pytest.mark.usefixtures("openai")
def test_the_newest_checkpoint_of_the_same_world_is_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "artifacts")
    assert newest_checkpoint(store, "real") is None
    for name, world, day in (
        ("dpo-e3", "real", 2),
        ("sft-e1", "real", 1),
        ("dpo-e1", "sandbox", 9),
        ("other", "real", 8),
    ):
        train(tmp_path, name, world, f"2026-11-0{day}T00:00:00Z", monkeypatch)
    monkeypatch.setattr("zephyrctl.stages.gen_prefs.pooling.find_spec", lambda name: name)
    found = newest_checkpoint(store, "real")
    assert found is not None
    assert str(found.ref) == "dpo-e3@v1"
    pool, told = pool_of(tmp_path)
    assert (len(pool), pool[-1]) == (4, "dpo-e3@v1")
    assert "dpo-e3@v1, the newest checkpoint here" in told
    assert [pool[0], pool[2]] == [OPENAI[0], OPENAI[-1]]
    monkeypatch.setattr("zephyrctl.stages.gen_prefs.pooling.find_spec", lambda name: None)
    pool, told = pool_of(tmp_path)
    assert (len(pool), "dpo-e3@v1" in pool) == (4, False)
    assert "without dpo-e3@v1, which needs pip install" in told


@pytest.mark.usefixtures("openai")
def test_a_pool_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        pool_of(tmp_path, size=1)


@given(st.integers(2, 8))
@settings(max_examples=7)
def test_a_pool_of_any_size_holds_different_models_of_both_vendors(size: int) -> None:
    from zephyrctl.stages.gen_prefs.pooling import _spread

    pool = _spread(["openai", "anthropic"], None, size)
    assert len(set(pool)) == size
    assert abs(sum(name in OPENAI for name in pool) - size / 2) <= 1
