"""Keys leave no trace in texts; ordinary texts stay as they are."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.redact import redact, register

KEYS = st.text(string.ascii_letters + string.digits + "_-", min_size=12, max_size=60)


@given(before=st.text(), key=KEYS, after=st.text())
def test_a_registered_secret_is_gone(before: str, key: str, after: str) -> None:
    register(f"Q{key}Z")
    assert f"Q{key}Z" not in redact(f"{before}Q{key}Z{after}")


@given(key=st.text(string.ascii_letters + string.digits, min_size=16, max_size=60))
def test_what_looks_like_a_key_is_gone(key: str) -> None:
    for start in ("sk-", "sk-proj-", "sk-ant-", "Bearer ", "bearer ", "hf_"):
        assert key not in redact(f"Incorrect API key provided: {start}{key}. See the docs.")


def test_masked_keys_and_userinfo_are_gone() -> None:
    assert "abcd" not in redact("Incorrect API key: sk-pr****************abcd")
    assert "secret" not in redact("cannot reach https://user:secret@host/v1")


def test_values_of_key_variables_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse")
    assert redact("the correct-horse key") == "the [redacted] key"


def test_ordinary_text_stays() -> None:
    for text in ("ask the risk-averse", "HTTP 500: bearer of news", "https://api.openai.com/v1", "", "short"):
        assert redact(text) == text
