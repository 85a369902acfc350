"""The ladder's models are current and priced; the training ahead is counted as the training stages count it."""

from datetime import date
from pathlib import Path

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.line_up import line_up
from zephyrctl.asking.outlook import cheaper, optimiser_steps
from zephyrctl.modelspec import parse_model
from zephyrctl.money import Price
from zephyrctl.project import Project
from zephyrctl.providers.hosted.capabilities import accepted, retirement, table_date
from zephyrctl.providers.prices import known_price

TODAY = date(2026, 11, 22)
LINE_UP = line_up().vendors


@pytest.mark.parametrize(("vendor", "name"), [(v, n) for v, names in LINE_UP.items() for n in names])
def test_the_line_up_is_known_priced_and_not_retired(vendor: str, name: str) -> None:
    assert known_price(vendor, name, table_date()) is not None
    assert accepted(vendor, name) is not None
    assert retirement(vendor, name) is None
    assert parse_model(name).where == vendor


@pytest.mark.parametrize("vendor", LINE_UP)
def test_each_line_up_goes_down_in_price(vendor: str) -> None:
    prices = [known_price(vendor, name, table_date()) for name in LINE_UP[vendor]]
    costs = [p.input + p.output for p in prices if p is not None]
    assert costs == sorted(costs, reverse=True)


def test_two_of_the_same_vendor_and_one_of_another_all_cheaper() -> None:
    for teacher in ("gpt-4", "claude-opus-4-1"):
        spec = parse_model(teacher)
        price = known_price(spec.where, teacher, TODAY)
        assert price is not None
        found = cheaper(spec, price, TODAY)
        vendors = [parse_model(name).where for name, _ in found]
        assert (vendors[:2], len(found), vendors[2] != spec.where) == ([spec.where] * 2, 3, True)
        assert all(p.input + p.output < price.input + price.output for _, p in found)


@pytest.mark.parametrize(("vendor", "name"), [(v, names[0]) for v, names in LINE_UP.items()])
def test_every_rung_of_a_vendor_costs_less_than_the_one_above_it(vendor: str, name: str) -> None:
    price = known_price(vendor, name, TODAY)
    own = [p for n, p in cheaper(parse_model(name), price, TODAY) if n in LINE_UP[vendor]]
    costs = [p.input + p.output for p in own]
    assert costs == sorted(set(costs), reverse=True)
    assert len(costs) == 2


def test_the_table_has_enough_models_of_each_vendor_to_leave_a_judge_out() -> None:
    assert line_up().date == table_date()
    assert all(len(set(names)) == len(names) >= 5 for names in LINE_UP.values())


def test_the_cheapest_has_nothing_below_it_and_others_have_no_ladder() -> None:
    assert cheaper(parse_model("gpt-6-luna"), Price(0.0, 0.0), TODAY) == []
    assert cheaper(parse_model("box:qwen"), Price(1.0, 1.0), TODAY) == []
    assert cheaper(parse_model("gpt-6.1-sol"), None, TODAY) == []


def work(folder: Path, edition: str | None, **stages: dict[str, object]) -> Work:
    return Work(Store.open(folder), edition=edition, project=Project(stages=stages))


def test_steps_follow_the_edition_and_the_project(tmp_path: Path) -> None:
    paper = work(tmp_path, "zephyr-7b/paper + lr")
    assert optimiser_steps(paper, "dpo", 61_000, 0, "real") == 3 * 1907
    assert optimiser_steps(paper, "sft", 200_000, 1024, "real") == 196
    assert optimiser_steps(work(tmp_path, None), "dpo", 100, 0, "sandbox") == 7
    mine = work(tmp_path, "sandbox", dpo={"batch-size": 10, "epochs": 2})
    assert optimiser_steps(mine, "dpo", 101, 0, "sandbox") == 22
