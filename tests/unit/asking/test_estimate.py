"""Estimates add up, cheaper ways are cheaper, and what is there already is taken off."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.estimate import (
    Estimate,
    Fewer,
    Part,
    Range,
    count,
    ladder,
    ladder_table,
    table,
    text_tokens,
    told,
)
from zephyrctl.money import FREE, Price, Tokens

PRICES = st.builds(
    Price,
    input=st.floats(0, 50),
    output=st.floats(0, 100),
    cached_input=st.none() | st.floats(0, 5),
    cache_write=st.none() | st.floats(0, 80),
    batch_factor=st.floats(0.1, 1),
)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    return Range(*sorted(draw(st.floats(0, 5000)) for _ in range(3)))


@st.composite
def some_parts(draw: st.DrawFn) -> Part:
    calls = draw(st.integers(1, 5000))
    return Part(
        role=draw(st.sampled_from(["teacher", "pool"])),
        who=draw(st.sampled_from(["a", "b", "c"])),
        purpose=draw(st.sampled_from(["answer", "refinement"])),
        calls=calls,
        most=calls * draw(st.integers(1, 3)),
        prompt=draw(ranges()),
        reply=draw(ranges()),
        price=draw(st.none() | PRICES),
        bulk=draw(st.booleans()),
    )


ESTIMATES = st.lists(some_parts(), min_size=1, max_size=5).map(lambda parts: Estimate(tuple(parts)))
PART = Part("teacher", "gpt", "answer", 10, 10, Range(80, 100, 200), Range(50, 100, 400), Price(1.0, 2.0))


def test_a_part_costs_what_its_tokens_cost() -> None:
    assert PART.cost == Range(10 * (80 + 100), 10 * (100 + 200), 10 * (200 + 800))
    assert told(Range(2_000_000, 3_000_000, 10_000_000)) == "$3.00 ($2.00 to $10.00)"


@given(ESTIMATES)
def test_low_likely_and_high_are_in_order_and_parts_add_up(estimate: Estimate) -> None:
    assert estimate.cost.low <= estimate.cost.likely + estimate.calls
    assert estimate.cost.likely <= estimate.cost.high + estimate.calls
    assert estimate.calls == sum(p.calls for p in estimate.parts) <= estimate.most
    assert estimate.prompt_tokens.likely == pytest.approx(sum(p.prompt_tokens.likely for p in estimate.parts))
    document = estimate.as_dict()
    assert (document["usd"] is None) == bool(estimate.unpriced)
    assert sum(p["calls"]["likely"] for p in document["parts"]) == document["calls"]["likely"]


@given(some_parts(), st.data())
def test_no_reply_within_the_bounds_costs_more_than_high(part: Part, data: st.DataObject) -> None:
    if part.price is None:
        return
    prompt = data.draw(st.integers(0, int(part.prompt.high)))
    tokens = Tokens(
        prompt,
        data.draw(st.integers(0, int(part.reply.high))),
        cache_write=data.draw(st.integers(0, prompt)),
    )
    assert part.cost is not None
    assert part.price.cost(tokens) * part.most <= part.cost.high


@given(ESTIMATES, st.integers(0, 6000))
def test_what_is_held_only_ever_takes_off(estimate: Estimate, held: int) -> None:
    rest = estimate.rest({("a", "answer"): held})
    assert rest.calls <= estimate.calls
    assert rest.cost.high <= estimate.cost.high
    assert estimate.rest({}) == estimate


def test_all_held_leaves_nothing_to_pay() -> None:
    rest = Estimate((PART,)).rest({("gpt", "answer"): 10})
    assert (rest.calls, rest.most, rest.cost) == (0, 0, Range(0, 0, 0))


def test_a_held_reply_is_taken_off_once() -> None:
    alike = replace(PART, role="pool")
    rest = Estimate((PART, alike)).rest({("gpt", PART.purpose): PART.calls + 3})
    assert [part.calls for part in rest.parts] == [0, alike.calls - 3]


@given(ESTIMATES)
def test_batches_never_cost_more_and_the_high_end_stays(estimate: Estimate) -> None:
    rungs = ladder(estimate, [], role="teacher", flag="--teacher")
    assert rungs[0].estimate == estimate
    for rung in rungs[1:]:
        assert rung.how == "--mode batch"
        assert rung.estimate.cost.likely <= estimate.cost.likely
        assert rung.estimate.cost.high == estimate.cost.high


def test_the_ladder_names_the_ways_down() -> None:
    judge = replace(PART, role="judge", purpose="aspect", bulk=True)
    pool = replace(PART, role="pool", who="small", purpose="completion")
    overall = replace(judge, purpose="overall", calls=40, most=40)
    fewer = [Fewer("the overall score alone", "--judge-mode overall", frozenset({"aspect"}))]
    repair = replace(judge, purpose="aspect repair", calls=0, most=20)
    estimate = Estimate((pool, judge, repair, overall))
    rungs = ladder(estimate, [("mini", Price(0.1, 0.2))], role="judge", flag="--teacher", fewer=fewer)
    assert [r.how for r in rungs] == ["", "--teacher mini", "--judge-mode overall", "--mode batch"]
    this, mini, alone, batch = (r.estimate for r in rungs)
    assert mini.parts[0] == pool
    assert mini.cost.likely == pytest.approx(3000 + 0.1 * (3000 + 12000))
    assert (alone.calls, this.calls, batch.calls) == (50, 60, 60)
    assert [part.purpose for part in alone.parts] == ["completion", "overall"]
    assert batch.cost.likely == 3000 + (3000 + 12000) / 2
    rows = ladder_table(rungs).rows
    assert rows[0][0] == "this plan"
    assert len(rows) == 4


def test_free_and_unpriced_are_told_apart() -> None:
    free = Estimate((replace(PART, price=FREE),))
    unknown = Estimate((replace(PART, price=None),))
    assert free.free
    assert not unknown.free
    assert unknown.unpriced == ["gpt"]
    assert table(free, "plan").rows[0][-1] == "free"
    assert table(unknown, "plan").rows[0][-1] == "price not known"
    mixed = table(Estimate((PART, replace(PART, who="x", price=None))), "plan")
    assert mixed.rows[-1][-1] == "$0.0030 ($0.0018 to $0.0100) and what has no known price"


def test_numbers_for_people() -> None:
    assert [count(n) for n in (0, 812, 61_400, 1_200_000, 2.5e9)] == ["0", "812", "61.4k", "1.2M", "2.5G"]


@given(st.text(max_size=300))
def test_a_text_has_no_more_tokens_than_the_high_end_for_common_tokenizers(text: str) -> None:
    found = text_tokens(len(text.encode("utf-8", "surrogatepass")))
    assert found.low <= found.likely <= found.high
    assert len(text.split()) <= found.high
