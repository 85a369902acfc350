"""Nothing above five dollars is spent without a word, and nobody is asked where nobody sits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.asking.consent import FREE_TO_GO, agree, check_prices, decide
from zephyrctl.asking.estimate import Estimate, Part, Range
from zephyrctl.errors import UsageError
from zephyrctl.money import Price

PART = Part(
    "teacher", "gpt", "answer", 1000, 1000, Range(80, 100, 200), Range(50, 100, 400), Price(20.0, 60.0)
)
LARGE = Estimate((PART,))


@given(st.floats(0, 1e12), st.booleans())
def test_consent_or_a_small_amount_goes_on(likely: float, consent: bool) -> None:
    assert decide(likely, consent=consent) == ("go" if consent or likely <= FREE_TO_GO else "ask")


def test_five_dollars_pass_and_a_cent_more_does_not() -> None:
    assert decide(5_000_000, consent=False) == "go"
    assert decide(5_010_000, consent=False) == "ask"


def test_without_a_terminal_the_line_to_add_is_told() -> None:
    with pytest.raises(UsageError) as caught:
        agree(LARGE, "gen-sft", None)
    assert caught.value.exit_code == 2
    assert "$8.00 ($4.60 to $28.00)" in caught.value.message
    assert str(caught.value.hint).startswith("--max-usd 16 or --yes")


@pytest.mark.parametrize("answer", [True, False])
def test_at_a_terminal_the_answer_decides(answer: bool) -> None:
    questions: list[str] = []

    def ask(question: str) -> bool:
        questions.append(question)
        return answer

    if answer:
        agree(LARGE, "gen-prefs", ask)
    else:
        with pytest.raises(UsageError, match="not agreed to"):
            agree(LARGE, "gen-prefs", ask)
    assert len(questions) == 1
    assert "$8.00" in questions[0]


def test_a_limit_needs_prices() -> None:
    unknown = Estimate((PART, replace(PART, who="odd-model", price=None)))
    check_prices(unknown, limit=False)
    check_prices(LARGE, limit=True)
    with pytest.raises(UsageError, match="odd-model") as caught:
        check_prices(unknown, limit=True)
    assert "--price" in str(caught.value.hint)
