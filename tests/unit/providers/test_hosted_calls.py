"""Hosted models against the loopback teacher: each behaviour has one outcome; what failed is never a row."""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import AuthError, ProviderDown, UsageError, ZephyrError
from zephyrctl.events import Recorder
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.modelspec import parse_model
from zephyrctl.project import Project
from zephyrctl.providers.base import Answer, Ask, Failure, Sampling
from zephyrctl.providers.calling.caller import Caller, CallSettings
from zephyrctl.providers.calling.job import Result
from zephyrctl.providers.hosted.provider import HostedProvider
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import Message
from zephyrctl.testing.replies import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher, Script

CANARY = "sk-canary-0123456789abcdef"
MODELS = {"openai": "gpt-test", "anthropic": "claude-test", "named": "lab:llama"}


class Desk:
    """One model at the loopback teacher, with a ledger and a caller that does not really sleep."""

    def __init__(self, folder: Path, teacher: LoopbackTeacher, model: str) -> None:
        self.teacher = teacher
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.told = Recorder()
        self.slept: list[float] = []
        self.model = model
        self.folder = folder
        self.summary: dict[str, Any] = {}
        lab = {"base_url": [teacher.openai_url, teacher.openai_url + "/"], "key_env": "LAB_KEY"}
        self.site = Site(project=Project.model_validate({"endpoints": {"lab": lab}}))

    def provider(self) -> HostedProvider:
        provider = make_provider(parse_model(self.model), site=self.site)
        assert isinstance(provider, HostedProvider)
        return provider

    def ask(self, n: int = 1, asks: list[Ask] | None = None, **settings: Any) -> list[Result]:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(0)

        bounds = CallSettings(**{"concurrency": 4, "deadline": 20.0, "grace": 2.0, **settings})
        run = Run("run", "test", "out")
        with Caller(self.ledger, run=run, emit=self.told, settings=bounds, sleep=sleep) as caller:
            try:
                return caller.ask(self.provider(), asks or questions(n), task="asking")
            finally:
                self.summary = caller.summary()[0]


def questions(n: int) -> list[Ask]:
    return [
        Ask((Message(role="user", content=f"Add {i} and 4."),), Sampling(max_tokens=64)) for i in range(n)
    ]


@pytest.fixture(params=["openai", "anthropic", "named"])
def desk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Desk]]:
    teachers: list[LoopbackTeacher] = []
    desks: list[Desk] = []

    def make(script: Script = "ok", **settings: dict[str, str]) -> Desk:
        teacher = LoopbackTeacher(script=script, **settings)  # type: ignore[arg-type]
        teachers.append(teacher.__enter__())
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "LAB_KEY"):
            monkeypatch.setenv(name, CANARY)
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.openai_url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", teacher.url)
        desks.append(Desk(tmp_path, teacher, MODELS[request.param]))
        return desks[-1]

    yield make
    for made in desks:
        made.ledger.close()
    for teacher in teachers:
        teacher.__exit__(None, None, None)


def texts(results: list[Result]) -> list[str]:
    return [r.text if isinstance(r, Answer) else f"<{r.reason}>" for r in results]


def right(d: Desk, n: int = 1) -> list[str]:
    return [answer_text(d.provider().wire(q)) for q in questions(n)]


def test_answers_arrive_once_and_are_replayed(desk: Callable[..., Desk]) -> None:
    d = desk()
    first = d.ask(5)
    assert all(isinstance(r, Answer) and r.outcome == "text" and not r.replayed for r in first)
    assert texts(first) == right(d, 5)
    again = d.ask(5)
    assert texts(again) == texts(first)
    assert all(isinstance(r, Answer) and r.replayed for r in again)
    assert d.teacher.requests == d.teacher.billed_calls == 5
    assert (d.summary["calls"], d.summary["replayed"]) == (0, 5)
    answer = first[0]
    assert isinstance(answer, Answer)
    assert answer.tokens is not None
    assert answer.tokens.prompt > 0
    assert answer.served_model == f"{d.provider().model}-2026"
    if d.model != MODELS["named"]:
        assert any("BASE_URL is set" in text for text in d.told.texts())


def test_the_body_on_the_wire_is_the_body_of_the_key(desk: Callable[..., Desk]) -> None:
    d = desk()
    seed = None if d.model == MODELS["anthropic"] else 7
    ask = Ask(
        (Message(role="system", content="Be short."), Message(role="user", content="Add 2 and 3.")),
        Sampling(temperature=0.7, top_p=0.9, max_tokens=30, seed=seed),
        draw=3,
    )
    d.ask(asks=[ask])
    sent = d.teacher.bodies[0]
    assert sent == d.provider().wire(ask)
    assert (sent["temperature"], sent["top_p"], sent.get("seed")) == (0.7, 0.9, seed)
    assert "draw" not in sent


@pytest.mark.parametrize(
    "mode", ["429", "500", "502", "503", "504", "529", "408", "409", "gateway", "drop", "rst", "close"]
)
def test_a_passing_fault_is_asked_again(desk: Callable[..., Desk], mode: str) -> None:
    d = desk([mode, mode])
    assert texts(d.ask(1)) == right(d)
    assert d.teacher.requests == 3
    assert d.summary["retries"] == 2
    assert len(d.slept) >= 2
    doubtful = 2 if mode in ("504", "408", "drop", "rst", "close") else 0
    assert d.summary["in_doubt"]["calls"] == doubtful


@pytest.mark.parametrize("mode", ["html", "truncated", "object", "null", "nothing", "no_choices", "bad_utf8"])
def test_a_reply_that_is_none_is_retried_then_fails_its_row(desk: Callable[..., Desk], mode: str) -> None:
    good: list[Any] = []

    def script(times: int, body: Any) -> str:
        if not good:
            good.append(body)
        return "ok" if body == good[0] else mode

    d = desk(script)
    (failed,) = [result for result in d.ask(2) if isinstance(result, Failure)]
    assert failed.reason == "bad_envelope"
    assert d.teacher.requests == 1 + 6
    assert d.ledger.known([failed.key]) == {}
    assert d.summary["failures"] == {"bad_envelope": 1}
    assert (d.summary["calls"], d.summary["in_doubt"]["calls"]) == (1, 6)


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [
        ("empty", "empty"),
        ("length", "length"),
        ("refusal", "refusal"),
        ("filtered", "filtered|refusal"),
        ("reasoning", "reasoning_cut"),
        ("reasoning:hidden", "reasoning_cut"),
        ("think_cut", "reasoning_cut"),
    ],
)
def test_a_paid_outcome_is_kept_and_not_asked_again(
    desk: Callable[..., Desk], mode: str, outcome: str
) -> None:
    d = desk(mode)
    for replayed in (False, True):
        (result,) = d.ask(1)
        assert isinstance(result, Answer)
        assert result.outcome in outcome.split("|")
        assert result.replayed == replayed
    assert d.teacher.billed_calls == d.teacher.requests == 1


@pytest.mark.parametrize("mode", ["think", "reasoned", "gzip", "chunked", "cached", "nul", "no_usage"])
def test_answers_in_other_forms(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    (result,) = d.ask(1)
    assert isinstance(result, Answer)
    assert result.outcome == "text"
    if mode in ("think", "reasoned"):
        assert result.text == right(d)[0]
        assert result.reasoning
        assert "think" not in result.text
    if mode == "cached":
        assert result.tokens is not None
        assert 0 < result.tokens.cached <= result.tokens.prompt
    assert (result.tokens is None) == (mode == "no_usage")


@pytest.mark.parametrize("mode", ["401", "402", "403", "quota"])
def test_a_refused_key_stops_at_once(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    with pytest.raises(AuthError) as caught:
        d.ask(40, concurrency=2)
    assert caught.value.exit_code == 6
    assert d.teacher.requests <= 2
    assert CANARY not in str(caught.value) + str(caught.value.hint) + repr(caught.value.__context__)


@pytest.mark.parametrize("mode", ["404", "redirect", "refused_parameter"])
def test_a_wrong_address_model_or_setting_stops_at_once(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    with pytest.raises(UsageError) as caught:
        d.ask(40, concurrency=2)
    assert caught.value.exit_code == 2
    assert d.teacher.requests <= 2
    if mode == "refused_parameter":
        assert "temperature" in caught.value.message
        assert "may_drop=[temperature]" in str(caught.value.hint)


@pytest.mark.parametrize("mode", ["400", "422", "too_long"])
def test_a_refused_request_fails_its_row_alone(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(lambda times, body: mode if "Add 1 " in str(body) else "ok")
    results = d.ask(3)
    assert [type(r) for r in results] == [Answer, Failure, Answer]
    assert isinstance(results[1], Failure)
    assert results[1].reason == "rejected"
    assert "HTTP 4" in results[1].detail
    assert d.teacher.requests == 3


@pytest.mark.parametrize("mode", ["huge", "bomb"])
def test_a_huge_reply_is_cut_off_and_not_asked_again(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    (result,) = d.ask(1)
    assert isinstance(result, Failure)
    assert result.reason == "too_large"
    assert d.teacher.requests == 1


@pytest.mark.parametrize("mode", ["hang", "drip"])
def test_the_deadline_covers_the_whole_attempt(desk: Callable[..., Desk], mode: str) -> None:
    d = desk([mode])
    assert texts(d.ask(1, deadline=0.5)) == right(d)
    assert d.summary["in_doubt"]["calls"] == 1
    assert d.ledger.stats("run").states == {"timeout": 1, "ok": 1}


def test_a_lone_surrogate_becomes_storable(desk: Callable[..., Desk]) -> None:
    d = desk("surrogate")
    (result,) = d.ask(1)
    assert isinstance(result, Answer)
    assert result.text == "half \ufffd pair"


@pytest.mark.parametrize(
    ("header", "least"),
    [({"retry-after": "7"}, 7.0), ({"retry-after": "2.5"}, 2.5), ({"retry-after-ms": "1500"}, 1.5)],
)
def test_retry_after_is_honoured(desk: Callable[..., Desk], header: dict[str, str], least: float) -> None:
    d = desk(["429"], headers=header)
    assert isinstance(d.ask(1)[0], Answer)
    assert max(d.slept) >= least


def test_a_limit_that_is_used_up_is_read_from_a_good_reply(desk: Callable[..., Desk]) -> None:
    d = desk("exhausted")
    provider = d.provider()

    async def go() -> float | None:
        received = await provider.send(provider.wire(questions(1)[0]))
        await provider.aclose()
        return received.rest

    rest = asyncio.run(go())
    assert rest is not None
    assert 0 <= rest <= 2


@pytest.mark.parametrize("seconds", ["900", "1000000000"])
def test_a_wait_beyond_the_limit_is_try_again_later(desk: Callable[..., Desk], seconds: str) -> None:
    d = desk("429", headers={"retry-after": seconds})
    with pytest.raises(ProviderDown) as caught:
        d.ask(1)
    assert caught.value.exit_code == 75
    assert d.teacher.requests == 1


def test_nobody_there(desk: Callable[..., Desk]) -> None:
    d = desk()
    d.teacher.__exit__(None, None, None)
    with pytest.raises(ProviderDown, match="connection failed") as caught:
        d.ask(1)
    assert caught.value.exit_code == 75
    assert d.summary["in_doubt"]["calls"] == 0


ALL_FAULTS = [
    *("401", "403", "404", "400", "429", "500", "html", "redirect", "drop", "quota", "null", "huge"),
    *("refused_parameter", "gateway", "truncated"),
]


def test_the_key_is_in_nothing_that_is_written(desk: Callable[..., Desk]) -> None:
    said = []
    for mode in [*ALL_FAULTS, "ok"]:
        d = desk(mode)
        try:
            said += [repr(r) for r in d.ask(1)]
        except ZephyrError as error:
            said += [str(error.as_dict()), repr(error.__cause__), repr(error.__context__)]
        said += d.told.texts()
        said.append(repr(vars(d.provider())))
        d.ledger.close()
    assert CANARY not in "".join(said)
    path = d.folder / "ledger.sqlite"
    with sqlite3.connect(path) as raw:
        stored = [zlib.decompress(row[0]) for row in raw.execute("SELECT body_z FROM request")]
        stored += [zlib.decompress(row[0]) for row in raw.execute("SELECT body_z FROM response")]
    raw.close()
    assert stored
    assert CANARY.encode() not in b"".join([path.read_bytes(), *stored])
