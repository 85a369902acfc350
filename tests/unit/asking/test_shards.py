"""Parts of a step: how they are named, which prompts they take, what they may spend."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.shards import Shard
from zephyrctl.errors import UsageError
from zephyrctl.ledger.entries import Finished, Intent, Request, Run, Spend, StoredReply
from zephyrctl.ledger.ledger import Ledger

ARRAY = {f"SLURM_ARRAY_TASK_{name}": "" for name in ("ID", "MIN", "MAX", "COUNT")}


def array(task: object, first: object, last: object, count: object) -> dict[str, str]:
    return dict(zip(ARRAY, map(str, (task, first, last, count)), strict=True))


@pytest.mark.parametrize(("text", "index", "count"), [("3/8", 3, 8), ("1/1", 1, 1), (" 08 / 8 ", 8, 8)])
def test_a_part_as_typed(text: str, index: int, count: int) -> None:
    shard = Shard.parse(text, {})
    assert (shard.index, shard.count, str(shard)) == (index, count, f"{index}/{count}")


@pytest.mark.parametrize("text", ["", "3", "0/8", "9/8", "a/b", "-1/3", "1/0", "1.5/3", "²/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no part of a whole"):
        Shard.parse(text, {})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [(array(0, 0, 7, 8), "1/8"), (array(7, 0, 7, 8), "8/8"), (array(3, 1, 3, 3), "3/3")],
)
def test_the_place_in_an_array(environ: dict[str, str], expected: str) -> None:
    assert str(Shard.parse("auto", environ)) == expected


def test_auto_names_the_missing_variable() -> None:
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID is not set") as raised:
        Shard.parse("auto", {})
    assert "--shard i/n" in str(raised.value.hint)
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_COUNT is not set"):
        Shard.parse("auto", array(1, 0, 7, ""))


@pytest.mark.parametrize(
    "environ", [array(3, 3, 3, 1), array(4, 4, 5, 2), array(5, 1, 5, 2), array(0, 0, 0, 1), array(9, 0, 7, 8)]
)
def test_tasks_that_were_submitted_again_are_not_taken_for_the_whole(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="not a whole array"):
        Shard.parse("auto", environ)


@given(st.text(), st.integers(1, 40))
def test_every_prompt_belongs_to_exactly_one_part(prompt: str, count: int) -> None:
    assert sum(Shard(index, count).mine(prompt) for index in range(1, count + 1)) == 1


def test_parts_are_about_equal() -> None:
    sizes = [sum(Shard(i, 4).mine(f"prompt {n}") for n in range(4000)) for i in range(1, 5)]
    assert sum(sizes) == 4000
    assert all(850 < size < 1150 for size in sizes)


def test_names_and_places() -> None:
    shard = Shard(3, 8)
    assert shard.name("sft-data") == "sft-data.shard-3-of-8"
    assert shard.ledger_path(Path("/x/ledger.sqlite")) == Path("/x/ledger.shard-3-of-8.sqlite")


def test_a_part_begins_with_what_the_store_knows_and_pays_for_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    shard = Shard(2, 3)
    assert shard.begin(path) == 0
    assert not list(tmp_path.iterdir())
    asked = Request.of(provider="p", origin="o", endpoint="e", model="m", body={"n": 1}, draw=0)
    with Ledger.open(path) as ledger:
        (attempt,) = ledger.begin_many([Intent(asked, 9)], Run("1" * 16)).result()
        assert isinstance(attempt, int)
        reply = StoredReply(b"answer", "text", "stop", None, "m")
        ledger.finish_many([Finished(attempt, asked.key, reply, 7)]).result()
    assert shard.begin(path) == 7
    with Ledger.open(shard.ledger_path(path)) as own:
        assert own.known([asked.key]) == {asked.key: reply}
        assert own.spend() == Spend()
    assert shard.begin(path) == 7


@given(st.integers(0, 10**12), st.integers(1, 100))
def test_the_shares_never_exceed_the_limit(limit: int, count: int) -> None:
    shares = [Shard(index, count).share(limit) for index in range(1, count + 1)]
    assert all(share is not None for share in shares)
    assert limit - count < sum(share or 0 for share in shares) <= limit
    assert Shard(1, count).share(None) is None
