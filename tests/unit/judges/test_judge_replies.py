"""The corpus of judges' replies (`replies/*.yaml`): what each means for each text, decided by eye."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from zephyrctl.judges.base import NOT_APPLICABLE, Parsed
from zephyrctl.judges.ultrafeedback import parse_aspect, parse_overall

HERE = Path(__file__).parent / "replies"


def cases(*names: str) -> list[Any]:
    found = []
    for name in names:
        for case in yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")):
            found.append(pytest.param(case, id=f"{name}: {case['name']}"))
    return found


RATINGS = cases("sections", "hostile", "json")
SCORES = cases("overall")


def check(parsed: Parsed, wanted: int | str) -> None:
    if isinstance(wanted, int):
        assert parsed.value == float(wanted), parsed
    else:
        assert parsed.value is None, parsed
        assert (parsed.reason or "").startswith(wanted), parsed
        assert parsed.failed == (wanted != NOT_APPLICABLE)


@pytest.mark.parametrize("case", RATINGS)
def test_what_a_reply_says_of_each_text(case: dict[str, Any]) -> None:
    parsed = parse_aspect(case["reply"], 2, case.get("aspect", "instruction_following"))
    assert len(parsed) == 2
    for one, wanted in zip(parsed, case["expect"], strict=True):
        check(one, wanted)
    if "types" in case:
        assert [list(one.types) for one in parsed] == case["types"]
        for one, reason in zip(parsed, case.get("reasons", [None, None]), strict=True):
            assert one.reason is None if reason is None else (one.reason or "").startswith(reason)
    if "rationales" in case:
        assert [one.rationale for one in parsed] == case["rationales"]


@pytest.mark.parametrize("case", SCORES)
def test_what_a_critique_comes_to(case: dict[str, Any]) -> None:
    parsed = parse_overall(case["reply"])
    check(parsed, case["expect"])
    if "rationale" in case:
        assert parsed.rationale == case["rationale"]


def test_the_corpus_is_large_and_its_names_are_distinct() -> None:
    names = [case.id for case in (*RATINGS, *SCORES)]
    assert len(names) >= 120
    assert len(set(names)) == len(names)


PLAIN = [
    case
    for case in RATINGS
    if case.values[0]["reply"][:4].lower() in ("text", "**te", "### ")
    and "</think>\n" not in case.values[0]["reply"]
]
"""Replies that begin with a section, and with no reasoning."""


@pytest.mark.parametrize("case", PLAIN)
def test_what_is_said_first_moves_nothing(case: dict[str, Any]) -> None:
    aspect = case.get("aspect", "instruction_following")
    before, after = (
        parse_aspect(f"{opening}{case['reply']}", 2, aspect)
        for opening in ("", "Let me see, one by one.\n\nRating: 3\n\n")
    )
    assert before == after
