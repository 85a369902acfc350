"""From names to providers: keys first, places checked, retired and unknown models refused, nothing asked."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from raw_server import RawServer, http

from zephyrctl.errors import AuthError, UsageError
from zephyrctl.modelspec import parse_model
from zephyrctl.money import Price
from zephyrctl.project import Project
from zephyrctl.providers.base import Ask, Batching, Sampling
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.providers.hosted.transport import Unreachable
from zephyrctl.providers.registry import check_key, make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import Message

TODAY = date(2026, 11, 22)
KEYS = {"gpt-6-sol": "OPENAI_API_KEY", "claude-opus-5": "ANTHROPIC_API_KEY"}
QUESTION = (Message(role="system", content="Be brief."), Message(role="user", content="Add 2 and 3."))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-vendor-0123456789")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-vendor-0123456789")


def site(body: dict[str, Any] | None = None, **more: Any) -> Site:
    return Site(project=Project.model_validate(body or {}), today=TODAY, **more)


def made(text: str, at: Site | None = None) -> HostedProvider:
    provider = make_provider(parse_model(text), site=at or site())
    assert isinstance(provider, HostedProvider)
    return provider


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
    assert made(model).label.endswith(model)


def test_a_retired_model_without_a_key_is_a_matter_of_the_key() -> None:
    with pytest.raises(AuthError):
        make_provider(parse_model("gpt-4"), site=site())


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-with space", "sk-naïve", "sk-null\x7f"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(AuthError) as caught:
        check_key(parse_model("gpt-4o"))
    assert key[3:7] not in str(caught.value.as_dict())


def test_models_that_need_no_key() -> None:
    for text in ("sandbox", "ckpt/sft-e1", "org/name", "lab:llama"):
        check_key(parse_model(text), site({"endpoints": {"lab": {"base_url": "http://a"}}}))
    assert make_provider(parse_model("sandbox")).label == "sandbox:teacher"
    assert make_provider(parse_model("sandbox:pool-a")).world == "sandbox"


def test_unknown_roles_and_unlocated_folders() -> None:
    with pytest.raises(UsageError, match="no role 'chef'") as caught:
        make_provider(parse_model("sandbox:chef"))
    assert "sandbox:pool-a" in str(caught.value.hint)
    with pytest.raises(UsageError):
        make_provider(parse_model("./folder"))


@pytest.mark.usefixtures("keys")
class TestVendors:
    def test_adapters(self) -> None:
        assert isinstance(made("gpt-6-sol"), OpenAIProvider)
        assert isinstance(made("gpt-5.2-pro"), ResponsesProvider)
        assert isinstance(made("claude-opus-5"), AnthropicProvider)
        for name in ("gpt-6-sol", "gpt-5.2-pro", "claude-opus-5"):
            assert isinstance(made(name), Batching)
            assert made(name).price is not None
        assert made("gpt-6-sol").label == "openai:gpt-6-sol"
        assert made("gpt-6-sol").origin == "https://api.openai.com/v1"

    def test_a_retired_model_names_its_day_and_what_follows(self) -> None:
        for name, day, follows in (
            ("gpt-4", "2026-10-23", "gpt-5.6-sol"),
            ("gpt-3.5-turbo-0613", "2024-09-13", "gpt-5.6-terra"),
            ("claude-3-opus-20240229", "2026-01-05", "claude-opus-5-5"),
        ):
            with pytest.raises(UsageError, match=f"retired {name} on {day}") as caught:
                made(name)
            assert caught.value.exit_code == 2
            assert follows in str(caught.value.hint)
            assert f"NAME:{name}" in str(caught.value.hint)

    def test_a_retirement_to_come_is_told(self) -> None:
        (notice,) = made("gpt-4o").notices
        assert "2027-01-14" in notice
        assert "gpt-6-luna" in notice
        assert made("gpt-6-sol").notices == ()
        assert Site(today=date(2026, 10, 22)).today < TODAY
        early = Site(project=Project.model_validate({}), today=date(2026, 10, 22))
        assert "2026-10-23" in made("gpt-4", early).notices[0]

    def test_a_row_of_the_table_that_is_not_sure_is_told(self) -> None:
        provider = made("gpt-6.9-nova")
        assert "was not established on 2026-11-22" in provider.notices[0]
        assert "models: {gpt-6.9-nova: {like: NAME}}" in provider.notices[0]
        with pytest.raises(UsageError, match="temperature"):
            provider.wire(Ask(QUESTION, Sampling(temperature=0.5)))

    def test_an_unknown_model_names_its_neighbours(self) -> None:
        with pytest.raises(UsageError, match=r"'gpt-5\.66-sol' is not among the models of openai") as caught:
            made("gpt-5.66-sol")
        assert "gpt-5.6" in str(caught.value.hint)
        assert "models: {gpt-5.66-sol: {like: NAME}}" in str(caught.value.hint)

    def test_a_project_can_declare_a_model(self) -> None:
        body = {"models": {"gpt-7-sol": {"like": "gpt-6-sol", "price": {"in": 3, "out": 15}}}}
        provider = made("gpt-7-sol", site(body))
        assert provider.accepts.default_effort == "medium"
        assert provider.price is not None
        assert (provider.price.input, provider.price.output) == (3, 15)
        assert "zephyrctl.yaml" in provider.price.source
        with pytest.raises(UsageError, match=r"models\.gpt-7-sol\.like"):
            made("gpt-7-sol", site({"models": {"gpt-7-sol": {"like": "gpt-8"}}}))

    def test_a_price_of_the_command_line_is_for_models_without_one(self) -> None:
        given = Price(1.0, 2.0, source="--price")
        known = made("gpt-6-sol", site(price=given)).price
        assert known is not None
        assert known.source != "--price"
        unpriced = made("gpt-6.2-sol", site(price=given))
        assert unpriced.price == given
        assert made("gpt-6.2-sol").price is None

    def test_at_another_address_any_model_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        for name in ("gpt-4", "gpt-9-test"):
            provider = made(name)
            assert provider.price is None
            assert "OPENAI_BASE_URL" in provider.notices[0]

    def test_what_will_only_be_replayed_needs_neither_key_nor_a_living_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        assert made("gpt-4", site(replay_only=True)).label == "openai:gpt-4"
        assert made("gpt-9-test", site(replay_only=True)).model == "gpt-9-test"

    def test_settings_of_the_stage(self) -> None:
        provider = made("claude-opus-5", site(may_drop=frozenset({"temperature", "seed"}), effort="low"))
        body = provider.wire(Ask(QUESTION, Sampling(temperature=0.0, seed=5)))
        assert body["output_config"] == {"effort": "low"}
        assert "temperature" not in body
        assert provider.dropped == ("seed", "temperature")
        with pytest.raises(UsageError, match=r"anthropic:claude-opus-5 does not take temperature=0\.0"):
            made("claude-opus-5").wire(Ask(QUESTION, Sampling(temperature=0.0)))

    def test_the_form_of_a_reasoning_models_request(self) -> None:
        body = made("gpt-6-sol").wire(Ask(QUESTION, Sampling(temperature=1.0, max_tokens=9, effort="high")))
        assert body == {
            "model": "gpt-6-sol",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Add 2 and 3."},
            ],
            "max_completion_tokens": 9,
            "reasoning_effort": "high",
        }


LAB: dict[str, Any] = {
    "endpoints": {
        "lab": {
            "base_url": ["http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"],
            "key_env": "LAB_KEY",
            "price": {"in": 0.5, "out": 1},
            "rpm": 60,
            "accepts": {"seed": False, "limit": "max_completion_tokens"},
        },
        "far": {"offline": True},
        "open": {"base_url": "http://10.0.0.3/v1"},
        "claude": {"base_url": "http://10.0.0.4", "api": "anthropic"},
        "resp": {"base_url": "http://10.0.0.5/v1", "api": "responses"},
    }
}


def test_named_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AuthError, match="LAB_KEY is not set"):
        made("lab:org/llama", site(LAB))
    monkeypatch.setenv("LAB_KEY", "lab-secret")
    lab = made("lab:gpt-4", site(LAB))
    assert (lab.label, lab.origin, lab.model, lab.kind) == ("lab:gpt-4", "endpoint:lab", "gpt-4", "openai")
    assert (lab.rpm, lab.tpm, lab.offline, lab.world) == (60, None, False, "real")
    assert lab.price == Price(0.5, 1.0, batch_factor=0.5, source="zephyrctl.yaml: endpoints.lab.price")
    assert not isinstance(lab, Batching)
    body = lab.wire(Ask(QUESTION, Sampling(temperature=0.0, max_tokens=7)))
    assert body["max_completion_tokens"] == 7
    assert body["messages"][0]["role"] == "system"
    assert isinstance(made("claude:m", site(LAB)), AnthropicProvider)
    assert isinstance(made("resp:m", site(LAB)), ResponsesProvider)
    assert lab.label == parse_model("lab:gpt-4").label


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no endpoint named 'lob' in zephyrctl\.yaml") as caught:
        made("lob:llama", site(LAB))
    assert "lab" in str(caught.value.hint)


def test_nothing_is_sent_to_an_offline_endpoint() -> None:
    far = made("far:llama", site(LAB))
    assert far.offline
    with pytest.raises(UsageError, match="offline") as caught:
        asyncio.run(far.send(far.wire(Ask(QUESTION, Sampling()))))
    assert "ledger batch export" in str(caught.value.hint)


def sent_headers(provider: HostedProvider) -> None:
    async def go() -> None:
        await provider.send(provider.wire(Ask(QUESTION, Sampling())))
        await provider.aclose()

    asyncio.run(go())


@pytest.mark.usefixtures("keys")
def test_a_vendors_key_goes_to_no_named_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "lab-secret")
    with RawServer(http(b'{"choices": []}')) as server:
        for section in ({"base_url": server.url}, {"base_url": server.url, "key_env": "LAB_KEY"}):
            sent_headers(made("lab:m", site({"endpoints": {"lab": section}})))
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        sent_headers(made("gpt-4"))
    assert [seen.headers.get("authorization") for seen in server.seen] == [
        None,
        "Bearer lab-secret",
        "Bearer sk-vendor-0123456789",
    ]
    assert "vendor" not in str(server.seen[:2])


def test_an_address_that_is_down_leaves_the_calls_to_the_others() -> None:
    with RawServer(http()) as gone:
        dead = gone.url

    async def go(lab: HostedProvider) -> list[str]:
        outcomes = []
        for _ in range(4):
            try:
                await lab.send(lab.wire(Ask(QUESTION, Sampling())))
                outcomes.append("ok")
            except Unreachable as error:
                outcomes.append(error.reason)
        await lab.aclose()
        return outcomes

    with RawServer(http(b'{"choices": []}')) as server:
        lab = made("lab:m", site({"endpoints": {"lab": {"base_url": [dead, server.url]}}}))
        assert asyncio.run(go(lab)) == ["ok"] * 4
        assert len(server.seen) == 4
        assert [dead in notice for notice in lab.notices] == [True]
    assert asyncio.run(go(lab)) == ["transport"] * 4


@pytest.mark.usefixtures("keys")
def test_making_a_provider_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*args: object, **more: object) -> None:
        raise AssertionError("a request that nobody pays for")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    for text in ("gpt-6-sol", "claude-opus-5", "open:llama"):
        made(text, site(LAB)).wire(Ask(QUESTION, Sampling(temperature=1.0)))


@pytest.mark.usefixtures("keys")
def test_the_bound_covers_every_byte_and_the_whole_answer() -> None:
    words = "Ünïcode 漢字 🎓 " * 50
    ask = Ask((Message(role="user", content=words),), Sampling(temperature=1.0, max_tokens=321))
    for name in ("gpt-6-sol", "gpt-5.2-pro", "claude-opus-5"):
        provider = made(name)
        prompt, answer = provider.bound(provider.wire(ask))
        assert prompt > len(words.encode())
        assert answer == 321
