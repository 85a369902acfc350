"""From names to providers: keys first, addresses checked, every SDK exception given a meaning."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import anthropic._exceptions
import httpx2
import openai
import openai._exceptions
import pytest

from zephyrctl.errors import AuthError, UsageError, ZephyrError
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.anthropic import AnthropicProvider
from zephyrctl.providers.base import Rejected, Retryable
from zephyrctl.providers.hosted import HostedProvider, checked_url, origin_of
from zephyrctl.providers.openai import OpenAIProvider
from zephyrctl.providers.registry import check_key, make_provider

KEYS = {"gpt-4": "OPENAI_API_KEY", "claude-x": "ANTHROPIC_API_KEY"}


@pytest.mark.parametrize("model", list(KEYS))
def test_a_missing_key_is_said_first(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for ask in (check_key, make_provider):
        with pytest.raises(AuthError, match=f"{KEYS[model]} is not set") as caught:
            ask(parse_model(model))
        assert f"export {KEYS[model]}=" in str(caught.value.hint)
    monkeypatch.setenv(KEYS[model], "  \n")
    with pytest.raises(AuthError, match="is not set"):
        check_key(parse_model(model))
    monkeypatch.setenv(f"{KEYS[model]}_FILE", str(tmp_path / "absent"))
    with pytest.raises(AuthError, match="cannot be read"):
        check_key(parse_model(model))
    (tmp_path / "key").write_text("sk-from-a-file\n", encoding="utf-8")
    monkeypatch.setenv(f"{KEYS[model]}_FILE", str(tmp_path / "key"))
    check_key(parse_model(model))
    assert make_provider(parse_model(model)).label.endswith(model)


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-with space", "sk-naïve", "sk-null\x7f"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(AuthError) as caught:
        check_key(parse_model("gpt-4"))
    assert key[3:7] not in str(caught.value.as_dict())


def test_models_that_need_no_key() -> None:
    for text in ("sandbox", "ckpt/sft-e1", "org/name"):
        check_key(parse_model(text))
    assert make_provider(parse_model("sandbox")).label == "sandbox:teacher"
    assert make_provider(parse_model("sandbox:pool-a")).world == "sandbox"


def test_unknown_roles_endpoints_and_unlocated_folders() -> None:
    with pytest.raises(UsageError, match="no role 'chef'") as caught:
        make_provider(parse_model("sandbox:chef"))
    assert "sandbox:pool-a" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no endpoint named 'vllm'"):
        make_provider(parse_model("vllm:llama"))
    with pytest.raises(UsageError):
        make_provider(parse_model("./folder"))


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("http://me:secret@127.0.0.1:8000/v1?x=1#y", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_origins_hold_no_secrets(url: str, origin: str) -> None:
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
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="X"):
        checked_url(url, "X")


NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}


def classes(module: ModuleType) -> list[type[Exception]]:
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Exception)]
    return [cls for cls in found if cls.__module__ == module.__name__]


PLACES = [
    (OpenAIProvider, openai, openai._exceptions, "OpenAIError"),
    (AnthropicProvider, anthropic, anthropic._exceptions, "AnthropicError"),
]


@pytest.mark.parametrize(("provider", "sdk", "module", "root"), PLACES, ids=["openai", "anthropic"])
def test_every_sdk_exception_has_a_meaning(
    provider: type[HostedProvider], sdk: ModuleType, module: ModuleType, root: str
) -> None:
    exported = [v for v in list(vars(sdk).values()) if isinstance(v, type) and issubclass(v, Exception)]
    every = {cls for cls in (*classes(module), *exported) if not issubclass(cls, module.APIStatusError)}
    public = {cls.__name__ for cls in every if not cls.__name__.startswith("_")}
    assert public == set(provider.exceptions)
    assert root in provider.exceptions


def an_error(cls: type[Exception], status: int | None) -> Exception:
    made: Any = cls.__new__(cls)
    Exception.__init__(made, "text with sk-secret-key-0123456789")
    if status is not None:
        request = httpx2.Request("POST", "https://x/")
        made.response = httpx2.Response(status, request=request, json={})
        made.status_code, made.body = status, {"error": {"message": "sk-secret-key-0123456789"}}
    return made


@pytest.mark.parametrize(("provider", "sdk", "module", "root"), PLACES, ids=["openai", "anthropic"])
def test_every_sdk_exception_becomes_one_of_ours(
    provider: type[HostedProvider],
    sdk: ModuleType,
    module: ModuleType,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-1")
    one: HostedProvider = provider("m")  # type: ignore[call-arg]
    for cls in classes(module):
        statuses: list[int | None] = [None]
        if issubclass(cls, module.APIStatusError):
            fixed = getattr(cls, "status_code", None)
            statuses = [fixed] if isinstance(fixed, int) else [307, 400, 418, 500, 529]
        for status in statuses:
            fault = one.translate(an_error(cls, status))
            assert isinstance(fault, ZephyrError | Retryable | Rejected), cls
            assert "sk-secret" not in str(fault)


def test_transport_errors_of_the_http_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-1")
    one = OpenAIProvider("m")
    for cls in classes(httpx2._exceptions):
        if issubclass(cls, httpx2.RequestError) and cls is not httpx2.HTTPStatusError:
            fault = one.translate(cls("text"))
            assert isinstance(fault, Retryable), cls
            assert fault.reason == "transport"
            assert fault.maybe_billed == (cls.__name__ not in NEVER_SENT)
    assert isinstance(one.translate(ConnectionResetError()), Retryable)
    bug = ZeroDivisionError()
    assert one.translate(bug) is bug
