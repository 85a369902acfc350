from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.ref import (
    Asked,
    Ref,
    as_name,
    check_name,
    check_tag,
    is_name,
    looks_like_ref,
    parse_ref,
    version_number,
)
from zephyrctl.errors import UsageError

GOOD = ["a", "sft-e1", "dpo-e3.epoch1", "0x", "a" * 63, "prefs_2.b-c"]
BAD = [
    "",
    "A",
    "-a",
    ".a",
    "_a",
    "a" * 64,
    "a..b",
    "a.lock",
    "a/b",
    "a b",
    "a\n",
    "ä",
    "a@v1",
    "a:b",
    "--store",
]


@pytest.mark.parametrize("text", GOOD)
def test_names_in_the_grammar_are_taken(text: str) -> None:
    assert check_name(text) == text


@given(st.text())
def test_any_text_becomes_a_name_and_a_name_stays(text: str) -> None:
    name = as_name(text, "other")
    assert is_name(name)
    assert as_name(name, "other") == name


@pytest.mark.parametrize("text", BAD)
def test_names_outside_the_grammar_are_refused_and_the_grammar_is_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(text)
    assert "63 characters" in str(caught.value.hint)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("prefs", Asked("prefs")),
        ("prefs@v3", Asked("prefs", version=3)),
        ("prefs:good", Asked("prefs", tag="good")),
        ("prefs@sha256:12345678", Asked("prefs", digest="sha256:12345678")),
        ("dpo-e3.epoch1@v12", Asked("dpo-e3.epoch1", version=12)),
    ],
)
def test_each_form_of_a_ref(text: str, asked: Asked) -> None:
    assert parse_ref(text) == asked
    assert looks_like_ref(text)


@pytest.mark.parametrize(
    "text",
    [
        "prefs@",
        "prefs@3",
        "prefs@v0",
        "prefs@v01",
        "prefs@latest",
        "prefs@sha256:12",
        "prefs:",
        "prefs:v3",
        "@v1",
    ],
)
def test_what_is_no_ref_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)
    assert not looks_like_ref(text)


def test_a_tag_cannot_look_like_a_version() -> None:
    with pytest.raises(UsageError, match="v3"):
        check_tag("v3")


@given(
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True).filter(is_name), st.integers(1, 999_999_999)
)
def test_a_ref_reads_back_as_itself(name: str, version: int) -> None:
    assert parse_ref(str(Ref(name, version))) == Asked(name, version=version)
    assert version_number(f"v{version}") == version


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_never_a_fault(text: str) -> None:
    try:
        asked = parse_ref(text)
    except UsageError:
        return
    assert is_name(asked.name)
