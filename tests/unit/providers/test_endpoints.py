"""Where models are asked: which addresses are taken, and how calls are spread over equal ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import UsageError
from zephyrctl.project import Project
from zephyrctl.providers.hosted.endpoints import (
    ANTHROPIC,
    OPENAI,
    Balance,
    checked_url,
    named_place,
    origin_of,
    vendor_place,
)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        (" http://127.0.0.1:8000/v1?x=1#y", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(checked_url(url, "X")) == origin


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/",
        "host:80",
        "http://",
        "http://169.254.169.254/v1",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://host:99999/",
        "http://[broken",
        "https://me:secret-word@host/v1",
        "https://sk-secret-word@host/v1",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="X") as caught:
        checked_url(url, "X")
    assert "secret-word" not in str(caught.value.as_dict())


def test_the_vendors_own_addresses() -> None:
    place = vendor_place(OPENAI, "gpt-4o")
    assert (place.urls, place.origin, place.official) == ((OPENAI.url,), "https://api.openai.com/v1", True)
    assert vendor_place(ANTHROPIC, "m").urls == ("https://api.anthropic.com",)
    assert place.notices == ()


def test_an_address_of_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        "http://localhost:8000/v1/",
        "http://127.0.0.7:1/v1",
        "http://[::1]:2",
        "https://far.example/v1",
    ):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        place = vendor_place(OPENAI, "llama")
        assert not place.official
        assert place.origin == url.rstrip("/") == place.urls[0]
        assert place.notices == (f"OPENAI_BASE_URL is set: llama is asked at {place.origin}",)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.openai.com/v1/")
    assert vendor_place(OPENAI, "llama").official


def test_plain_http_to_another_machine_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://10.0.0.5:8000")
    with pytest.raises(UsageError, match="plain http") as caught:
        vendor_place(ANTHROPIC, "m")
    assert "zephyrctl.yaml" in str(caught.value.hint)
    section, place = named_place(project(base_url="http://10.0.0.5:8000", api="anthropic"), "lab")
    assert (section.api, place.urls) == ("anthropic", ("http://10.0.0.5:8000",))


def project(**section: Any) -> Project:
    return Project.model_validate({"endpoints": {"lab": section, "other": {"base_url": "http://o"}}})


def test_a_named_endpoint() -> None:
    _, place = named_place(
        project(base_url=["http://a/v1/", "https://b/v1"], key_env="LAB_KEY", rpm=3, tpm=9), "lab"
    )
    assert place.urls == ("http://a/v1", "https://b/v1")
    assert (place.origin, place.key_variable, place.rpm, place.tpm) == ("endpoint:lab", "LAB_KEY", 3, 9)
    assert not place.official
    assert named_place(project(base_url="http://a", origin="shared"), "lab")[1].origin == "shared"
    assert named_place(project(offline=True), "lab")[1].offline


def test_endpoints_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="no endpoint named 'lap'") as caught:
        named_place(project(base_url="http://a"), "lap")
    assert "did you mean lab?" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        named_place(project(base_url="http://a"), "zzz")
    assert "lab, other" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        named_place(Project.model_validate({}), "vllm")
    assert "endpoints:" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"endpoints\.lab\.base_url is empty"):
        named_place(project(), "lab")
    with pytest.raises(UsageError, match="link-local"):
        named_place(project(base_url="http://169.254.169.254/"), "lab")


def test_a_vendors_key_cannot_be_named_for_another_address() -> None:
    for url in (
        "https://evil.example/v1",
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.example/v1",
    ):
        with pytest.raises(UsageError, match="would send the key in OPENAI_API_KEY"):
            named_place(project(base_url=["https://api.openai.com/v1", url], key_env="OPENAI_API_KEY"), "lab")
    own = project(base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY", api="responses")
    assert named_place(own, "lab")[1].key_variable == "OPENAI_API_KEY"


class Clock:
    """Seconds that the test decides."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
def test_the_least_busy_address_takes_the_next_call(ends: list[int], count: int) -> None:
    urls = [f"u{i}" for i in range(count)]
    balance = Balance(urls)
    out: list[tuple[Any, str]] = []
    for end in ends:
        if end < 3 and out:
            out.pop(end % len(out))[0].__exit__(None, None, None)
            continue
        taken = balance.taken()
        before = [sum(url == u for _, url in out) for u in urls]
        url = taken.__enter__()
        assert before[urls.index(url)] == min(before)
        out.append((taken, url))
    for taken, _ in out:
        taken.__exit__(None, None, None)


def test_calls_one_after_the_other_go_around() -> None:
    balance = Balance(["a", "b", "c"])
    order = []
    for _ in range(6):
        with balance.taken() as url:
            order.append(url)
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_an_unreachable_address_is_set_aside_and_told_once() -> None:
    clock = Clock()
    balance = Balance(["http://a:1/v1", "http://b:1/v1"], clock)

    def taken() -> str:
        with balance.taken() as url:
            return url

    pauses = []
    for _ in range(6):
        balance.unreachable("http://a:1/v1")
        balance.unreachable("http://a:1/v1")
        start = clock.now
        assert {taken() for _ in range(4)} == {"http://b:1/v1"}
        while {taken(), taken()} == {"http://b:1/v1"}:
            clock.now += 1.0
        pauses.append(clock.now - start)
    assert pauses == [5, 10, 20, 40, 60, 60]
    assert len(balance.told) == 1
    assert "http://a:1/v1" in balance.told[0]
    balance.reached("http://a:1/v1")
    balance.unreachable("http://a:1/v1")
    clock.now += 5
    assert "http://a:1/v1" in {taken(), taken()}
    assert len(balance.told) == 1


def test_where_all_are_set_aside_the_first_to_come_back_is_tried() -> None:
    clock = Clock()
    balance = Balance(["a", "b"], clock)
    balance.unreachable("b")
    clock.now += 1
    balance.unreachable("a")
    with balance.taken() as url:
        assert url == "b"


def test_a_single_address_is_never_set_aside() -> None:
    balance = Balance(["a"])
    balance.unreachable("a")
    with balance.taken() as url:
        assert url == "a"
    assert balance.told == []
