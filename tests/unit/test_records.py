import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from zephyrctl import records
from zephyrctl.records import Message, PreferenceRow, SftRow

USER = Message(role="user", content="hi")
YES = Message(role="assistant", content="yes")
NO = Message(role="assistant", content="no")


def test_prompt_id_of_one_user_message_is_the_hubs() -> None:
    assert records.prompt_id([USER]) == hashlib.sha256(b"hi").hexdigest()
    assert records.prompt_id([USER, YES, USER]) != records.prompt_id([USER])


@given(st.text(min_size=1), st.floats(0, 1))
def test_split_depends_on_the_prompt_alone(identity: str, fraction: float) -> None:
    assert records.split_of(identity, fraction) == records.split_of(identity, fraction)
    assert records.split_of(identity, 0.0) == "train"
    assert records.split_of(identity, 1.0) == "test"


def test_split_share() -> None:
    tests = sum(records.split_of(str(i), 0.1) == "test" for i in range(10_000))
    assert 900 < tests < 1100


def test_chosen_never_equals_rejected() -> None:
    with pytest.raises(ValidationError, match="same text"):
        PreferenceRow(prompt_id="x", prompt=[USER], chosen=[YES], rejected=[YES])
    PreferenceRow(prompt_id="x", prompt=[USER], chosen=[YES], rejected=[NO])


def test_sft_row_needs_an_answer() -> None:
    with pytest.raises(ValidationError, match="assistant"):
        SftRow(row_id="x", prompt_id="x", messages=[USER])


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValidationError, match="surrogate"):
        Message(role="user", content="a\ud800b")


def test_explain_names_path_and_value() -> None:
    with pytest.raises(ValidationError) as caught:
        SftRow(row_id="x", prompt_id="x", messages=[{"role": "bot", "content": "a"}])  # type: ignore[list-item]
    assert records.explain(caught.value).startswith("messages.0.role: ")
    assert "'bot'" in records.explain(caught.value)


@given(st.integers(), st.text(), st.text())
def test_row_seed_is_stable_and_in_range(seed: int, a: str, b: str) -> None:
    value = records.row_seed(seed, a, b)
    assert 0 <= value < 2**63
    assert value == records.row_seed(seed, a, b)
