"""Several sources read as one: weights, splits, keys, counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zephyrctl.artifacts.behind import steps_behind
from zephyrctl.artifacts.lineage import lineage
from zephyrctl.artifacts.mixture import open_mixture, split_weight
from zephyrctl.artifacts.step import digests_by_role
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.prompts import from_source
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.records import split_of

if TYPE_CHECKING:
    from conftest import Make

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(name, rows)`: a JSONL file in the test's folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def put(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return put


def pairs(first: int, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {n}", "chosen": "a", "rejected": "b"} for n in range(first, first + count)]


def read(store: Store, *texts: str, kind: str = "prefs", **more: Any) -> list[tuple[str | None, str]]:
    rows: Any = open_mixture(store, texts, kind, **more).rows()
    return [(split, row.prompt[0].content) for _, split, row in rows]


@pytest.mark.parametrize(
    ("text", "source", "weight"),
    [
        ("sft-data", "sft-data", 1.0),
        ("sft-data=0.5", "sft-data", 0.5),
        ("sft-data@v2=3", "sft-data@v2", 3.0),
        ("hf://org/name@main=0.25", "hf://org/name@main", 0.25),
        ("./a=b/rows.jsonl", "./a=b/rows.jsonl", 1.0),
        ("./a=b/rows.jsonl=2", "./a=b/rows.jsonl", 2.0),
        ("lr=3.jsonl", "lr=3.jsonl", 1.0),
        ("lr=3.jsonl=1e-1", "lr=3.jsonl", 0.1),
        ("-=2", "-", 2.0),
    ],
)
def test_what_stands_after_the_last_equals_sign_is_the_weight(text: str, source: str, weight: float) -> None:
    assert split_weight(text) == (source, weight)


@pytest.mark.parametrize("text", ["x=0", "x=-1", "x=half", "x=nan", "x=inf", "x="])
def test_a_weight_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no number above 0") as caught:
        split_weight(text)
    assert "x=0.5" in str(caught.value.hint)


def test_a_path_of_that_exact_name_wins(store: Store, write: Write) -> None:
    write("rows=2", pairs(0, 1)).rename("run=2")
    assert split_weight("./run=2") == ("./run=2", 1.0)
    with pytest.raises(RefNotFound):
        read(store, "./gone=2")


def test_one_source_of_weight_one_is_that_source(store: Store, make: Make) -> None:
    artifact = make()
    source = open_mixture(store, ["prefs"], "prefs")
    assert source.artifact is not None
    assert source.inputs("data") == [source.input("data")]
    assert source.shares() == []
    assert open_mixture(store, ["prefs=1"], "prefs").digest == artifact.digest


def test_a_share_is_drawn_by_content_and_contained_in_a_larger_one(store: Store, write: Write) -> None:
    path = write("p.jsonl", pairs(0, 400))
    shares = {w: set(read(store, f"{path}={w}")) for w in (0.1, 0.3, 0.5, 0.9)}
    for smaller, larger in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.9)):
        assert shares[smaller] < shares[larger]
    assert 90 < len(shares[0.3]) < 150
    backwards = write("q.jsonl", pairs(0, 400)[::-1])
    assert set(read(store, f"{backwards}=0.3")) == shares[0.3]
    assert set(read(store, f"{path}=0.3", seed=1)) != shares[0.3]


def test_rows_are_repeated_but_never_those_held_out(store: Store, make: Make, write: Write) -> None:
    make(rows=40, test=10)
    counted = Counter(read(store, "prefs=2.5"))
    train = Counter(n for (split, _), n in counted.items() if split == "train")
    assert set(train) == {2, 3}
    assert train[2] + train[3] == 40
    assert {n for (split, _), n in counted.items() if split == "test"} == {1}
    path = write("p.jsonl", pairs(0, 100))
    mixture = open_mixture(store, [f"{path}=2"], "prefs", test_fraction=0.3)
    rows: Any = list(mixture.rows())
    times = Counter(row.prompt_id for _, _, row in rows)
    assert all(n == (1 if split_of(i, 0.3) == "test" else 2) for i, n in times.items())
    (share,) = mixture.shares()
    assert share["rows"] + share["repeats"] == share["used"] == len(rows)


def test_held_out_in_one_source_is_held_out_in_all(store: Store, make: Make, write: Write) -> None:
    make(rows=4, test=2)  # train: 0-3, test: 4, 5
    make("other", rows=6, test=0, first=2)  # train: 2-7
    mixture = open_mixture(store, ["other", "prefs"], "prefs")
    rows: Any = list(mixture.rows())
    splits: dict[str, set[str]] = {}
    for _, split, row in rows:
        splits.setdefault(row.prompt[0].content, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {q for q, found in splits.items() if found == {"test"}} == {"question 4", "question 5"}
    other, prefs = mixture.shares()
    assert (other["held_out_elsewhere"], other["used"], prefs["used"]) == (2, 6, 6)
    assert "held_out_elsewhere" not in prefs


def test_an_unsplit_source_takes_the_splits_that_another_states(
    store: Store, make: Make, write: Write
) -> None:
    make(rows=4, test=2)
    path = write("p.jsonl", pairs(0, 8))
    found = read(store, str(path), "prefs")[:8]
    assert [split for split, _ in found] == ["train"] * 4 + ["test"] * 2 + [None] * 2


def test_what_is_held_out_does_not_depend_on_the_weights(store: Store, make: Make) -> None:
    make(rows=4, test=2)
    make("other", rows=6, test=0, first=2)
    for weight in (0.01, 0.5, 2):
        test = {q for split, q in read(store, "other", f"prefs={weight}") if split == "test"}
        assert test == {"question 4", "question 5"}


def test_prompts_are_asked_once(store: Store, make: Make, write: Write) -> None:
    make(rows=4, test=2)
    path = write("p.jsonl", [{"prompt": f"question {n}"} for n in range(3, 8)])
    mixture = open_mixture(store, ["prefs", str(path)], "prompts")
    rows: Any = list(mixture.rows())
    assert [row.prompt[0].content for _, _, row in rows] == [f"question {n}" for n in range(8)]
    assert mixture.shares()[1]["met_before"] == 3
    assert not mixture.in_order
    with pytest.raises(UsageError, match="asked once"):
        open_mixture(store, ["prefs=2"], "prompts")


def test_the_first_prompts_of_a_mixture_come_from_all_its_sources(store: Store, write: Write) -> None:
    paths = [
        write(f"{name}.jsonl", [{"prompt": f"{name} {n}", "source": name} for n in range(50)])
        for name in "ab"
    ]
    mixture = open_mixture(store, [str(path) for path in paths], "prompts")
    few = from_source(mixture, 20).load(seed=42, test_fraction=0.1)
    more = from_source(mixture, 40).load(seed=42, test_fraction=0.1)
    assert [seed.row for seed in more[:20]] == [seed.row for seed in few]
    assert {seed.row.source for seed in few} == {"a", "b"}


def test_weights_enter_the_key_and_every_source_keeps_its_own_digest(store: Store, make: Make) -> None:
    one, two = make("one"), make("two", first=10)
    plain = open_mixture(store, ["one", "two"], "prefs").inputs("data")
    assert [(i.ref, i.digest) for i in plain] == [("one@v1", one.digest), ("two@v1", two.digest)]
    keys = [
        digests_by_role(open_mixture(store, texts, "prefs").inputs("data"))
        for texts in (["one", "two"], ["one=0.5", "two"], ["one", "two=0.5"], ["one=0.5", "two=0.5"])
    ]
    assert len({json.dumps(key) for key in keys}) == 4
    assert all(key["data.0"] == one.digest and key["data.1"] == two.digest for key in keys)
    assert digests_by_role(open_mixture(store, ["one=0.5"], "prefs").inputs("data"))["data"] == one.digest


def test_lineage_reaches_through_a_mixture(store: Store, make: Make, make_step: Any) -> None:
    make("one")
    make("two", first=10, knob=2)
    inputs = open_mixture(store, ["one=0.5", "two"], "prefs").inputs("data")
    with make_step("both", inputs=inputs).open() as staging:
        staging.write_rows("train", [row for _, _, row in open_mixture(store, ["one"], "prefs").rows()])
        staging.commit()
    behind = steps_behind(store, "both")
    assert behind.lost == []
    assert len(behind.step_keys) == 3
    text = "\n".join(lineage(store, "both").lines())
    assert "one@v1" in text
    assert "changed" not in text


def test_a_mixture_with_sandbox_data_is_of_the_sandbox(store: Store, make: Make, write: Write) -> None:
    make(world="sandbox")
    path = write("p.jsonl", pairs(50, 3))
    assert open_mixture(store, [str(path), "prefs"], "prefs").world == "sandbox"
    assert open_mixture(store, [f"{path}=0.9"], "prefs").world == "real"


def test_a_source_named_twice_is_a_slip(store: Store, make: Make, write: Write) -> None:
    make()
    with pytest.raises(UsageError, match="named twice") as caught:
        open_mixture(store, ["prefs", "prefs@v1"], "prefs")
    assert caught.value.hint == "to take every row twice: prefs@v1=2"
    with pytest.raises(UsageError, match="named twice") as caught:
        open_mixture(store, ["prefs", "prefs@v1"], "prompts")
    assert "leave one of the two out" in str(caught.value.hint)
    one, two = write("a.jsonl", pairs(0, 2)), write("b.jsonl", pairs(0, 2))
    with pytest.raises(UsageError, match=r"b.jsonl is named twice \(as .*a.jsonl\)"):
        open_mixture(store, [str(one), str(two)], "prefs")
    with pytest.raises(UsageError):
        open_mixture(store, [], "prefs")


def test_bad_rows_of_all_sources_are_kept(store: Store, write: Write) -> None:
    bad = {"prompt": "q", "chosen": "a", "rejected": 7}
    one, two = write("a.jsonl", [*pairs(0, 2), bad]), write("b.jsonl", [*pairs(5, 2), bad])
    mixture = open_mixture(store, [str(one), str(two)], "prefs", on_bad_row="skip")
    for _ in range(2):
        assert len(list(mixture.rows())) == 4
        assert [r["where"] for r in mixture.rejects] == [f"{one}:3", f"{two}:3"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.floats(0.01, 3.5), min_size=1, max_size=3))
def test_counts_add_up_whatever_the_weights(store: Store, write: Write, weights: list[float]) -> None:
    texts = [f"{write(f'{n}.jsonl', pairs(n * 20, 30))}={w}" for n, w in enumerate(weights)]
    mixture = open_mixture(store, texts, "prefs", test_fraction=0.2)
    given_on = len(list(mixture.rows()))
    shares = mixture.shares() or [{"rows": 30, "used": given_on}]
    assert sum(share["used"] for share in shares) == given_on
    for share in shares:
        assert share["rows"] == 30
        assert share["used"] == share["rows"] + share.get("repeats", 0) - share.get("not_drawn", 0)
