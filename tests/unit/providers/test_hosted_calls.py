"""The real SDKs against the loopback teacher: each behaviour has one outcome; what failed is never a row."""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zephyrctl.errors import AuthError, ProviderDown, UsageError, ZephyrError
from zephyrctl.events import Recorder
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, AnyProvider, Ask, Failure, Sampling
from zephyrctl.providers.caller import Caller
from zephyrctl.providers.job import Result
from zephyrctl.providers.registry import make_provider
from zephyrctl.records import Message
from zephyrctl.testing.replies import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher, Script

CANARY = "sk-canary-0123456789abcdef"
MODELS = {"openai": "gpt-test", "anthropic": "claude-test"}


class Desk:
    """One model at the loopback teacher, with a ledger and a caller that does not really sleep."""

    def __init__(self, folder: Path, teacher: LoopbackTeacher, model: str) -> None:
        self.teacher = teacher
        self.ledger = Ledger.open(folder / "ledger.sqlite")
        self.told = Recorder()
        self.slept: list[float] = []
        self.model = model
        self.folder = folder

    def provider(self) -> AnyProvider:
        return make_provider(parse_model(self.model))

    def caller(self, concurrency: int = 4, deadline: float = 20.0) -> Caller:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(0)

        return Caller(
            self.ledger,
            emit=self.told,
            concurrency=concurrency,
            run_id="run",
            deadline=deadline,
            grace=2.0,
            sleep=sleep,
        )

    def ask(self, n: int = 1, **settings: float) -> list[Result]:
        caller = self.caller(**settings)  # type: ignore[arg-type]
        try:
            return caller.ask(self.provider(), questions(n), task="asking")
        finally:
            self.summary = caller.summary()[0]


def questions(n: int) -> list[Ask]:
    return [
        Ask((Message(role="user", content=f"Add {i} and 4."),), Sampling(max_tokens=64)) for i in range(n)
    ]


@pytest.fixture(params=["openai", "anthropic"])
def desk(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Desk]]:
    teachers: list[LoopbackTeacher] = []
    desks: list[Desk] = []

    def make(script: Script = "ok", **settings: dict[str, str]) -> Desk:
        teacher = LoopbackTeacher(script=script, **settings)  # type: ignore[arg-type]
        teachers.append(teacher.__enter__())
        monkeypatch.setenv("OPENAI_API_KEY", CANARY)
        monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
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


def test_answers_arrive_once_and_are_replayed(desk: Callable[..., Desk]) -> None:
    d = desk()
    first = d.ask(5)
    assert all(isinstance(r, Answer) and r.outcome == "text" and not r.replayed for r in first)
    assert texts(first) == [answer_text(d.provider().wire(q)) for q in questions(5)]
    again = d.ask(5)
    assert texts(again) == texts(first)
    assert all(isinstance(r, Answer) and r.replayed for r in again)
    assert d.teacher.requests == 5
    assert d.summary["calls"] == 0
    assert d.summary["replayed"] == 5
    answer = first[0]
    assert isinstance(answer, Answer)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.served_model == f"{MODELS[d.provider().kind]}-2026"
    assert any("BASE_URL is set" in text for text in d.told.texts())


def test_the_body_on_the_wire_is_the_body_of_the_key(desk: Callable[..., Desk]) -> None:
    d = desk()
    ask = Ask(
        (Message(role="system", content="Be short."), Message(role="user", content="Add 2 and 3.")),
        Sampling(temperature=0.7, top_p=0.9, max_tokens=30, seed=7),
        draw=3,
    )
    caller = d.caller()
    caller.ask(d.provider(), [ask], task="asking")
    sent = d.teacher.bodies[0]
    assert sent == d.provider().wire(ask)
    assert sent["temperature"] == 0.7
    assert sent["top_p"] == 0.9
    assert "draw" not in sent


@pytest.mark.parametrize("mode", ["429", "500", "502", "503", "529", "408", "409", "drop"])
def test_a_passing_fault_is_asked_again(desk: Callable[..., Desk], mode: str) -> None:
    d = desk([mode, mode])
    assert texts(d.ask(1)) == [answer_text(d.provider().wire(questions(1)[0]))]
    assert d.teacher.requests == 3
    assert d.summary["retries"] == 2
    assert len(d.slept) >= 2


@pytest.mark.parametrize("mode", ["html", "truncated", "object", "null", "nothing", "no_choices", "bad_utf8"])
def test_a_reply_that_is_none_is_retried_then_fails_its_row(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    results = d.ask(1)
    assert isinstance(results[0], Failure)
    assert results[0].reason == "bad_envelope"
    assert d.teacher.requests == 6
    assert d.ledger.known([results[0].key]) == {}
    assert d.summary["failures"] == {"bad_envelope": 1}
    assert d.summary["calls"] == 0


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [("empty", "empty"), ("length", "length"), ("refusal", "refusal"), ("filtered", "filtered|refusal")],
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


@pytest.mark.parametrize("mode", ["401", "402", "403", "quota"])
def test_a_refused_key_stops_at_once(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    with pytest.raises(AuthError) as caught:
        d.ask(40, concurrency=2)
    assert caught.value.exit_code == 6
    assert d.teacher.requests <= 2
    assert CANARY not in str(caught.value) + str(caught.value.hint) + repr(caught.value.__context__)


@pytest.mark.parametrize("mode", ["404", "redirect"])
def test_a_wrong_address_or_model_stops_at_once(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(mode)
    with pytest.raises(UsageError):
        d.ask(40, concurrency=2)
    assert d.teacher.requests <= 2


@pytest.mark.parametrize("mode", ["400", "422"])
def test_a_refused_request_fails_its_row_alone(desk: Callable[..., Desk], mode: str) -> None:
    d = desk(lambda times, body: mode if "Add 1 " in str(body) else "ok")
    results = d.ask(3)
    assert [type(r) for r in results] == [Answer, Failure, Answer]
    assert isinstance(results[1], Failure)
    assert results[1].reason == "rejected"
    assert f"HTTP {mode}" in results[1].detail
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
    assert texts(d.ask(1, deadline=0.5)) == [answer_text(d.provider().wire(questions(1)[0]))]
    assert d.summary["in_doubt"] == 1
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


@pytest.mark.parametrize("seconds", ["900", "1000000000"])
def test_a_wait_beyond_the_limit_is_try_again_later(desk: Callable[..., Desk], seconds: str) -> None:
    d = desk("429", headers={"retry-after": seconds})
    with pytest.raises(ProviderDown) as caught:
        d.ask(1)
    assert caught.value.exit_code == 75
    assert caught.value.resume
    assert d.teacher.requests == 1


def test_an_endless_rate_limit_ends_in_try_again_later(desk: Callable[..., Desk]) -> None:
    d = desk("429", headers={"retry-after": "0"})
    with pytest.raises(ProviderDown):
        d.ask(1)
    assert d.teacher.requests <= 150


def test_an_outage_opens_the_breaker(desk: Callable[..., Desk]) -> None:
    d = desk(lambda times, body: "ok" if "Add 0 " in str(body) else "503")
    caller = d.caller(concurrency=4)
    # the answer comes before the outage: among the failures it would begin a new row of them
    assert isinstance(caller.ask(d.provider(), questions(1), task="asking")[0], Answer)
    with pytest.raises(ProviderDown, match="in a row"):
        caller.ask(d.provider(), questions(100), task="asking")
    assert d.teacher.requests <= 3 * 4 + 4 + 1


def test_a_server_that_never_answered_is_down(desk: Callable[..., Desk]) -> None:
    d = desk("500")
    with pytest.raises(ProviderDown, match="no answer after 6 attempts"):
        d.ask(1)


def test_nobody_there(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    d = desk()
    d.teacher.__exit__(None, None, None)
    with pytest.raises(ProviderDown, match="connection failed") as caught:
        d.ask(1)
    assert caught.value.exit_code == 75
    assert d.ledger.stats("run").in_doubt == 0


def test_concurrency_is_a_ceiling(desk: Callable[..., Desk]) -> None:
    d = desk("slow")
    d.ask(12, concurrency=3)
    assert d.teacher.most_in_flight <= 3


ALL_FAULTS = ["401", "403", "404", "400", "429", "500", "html", "redirect", "drop", "quota", "null", "huge"]


def test_the_key_is_in_nothing_that_is_written(desk: Callable[..., Desk]) -> None:
    said = []
    for mode in [*ALL_FAULTS, "ok"]:
        d = desk(mode)
        try:
            said += [repr(r) for r in d.ask(1)]
        except ZephyrError as error:
            said += [str(error.as_dict()), repr(error.__cause__), repr(error.__context__)]
        said += d.told.texts()
        d.ledger.close()
    assert CANARY not in "".join(said)
    path = d.folder / "ledger.sqlite"
    with sqlite3.connect(path) as raw:
        stored = [zlib.decompress(row[0]) for row in raw.execute("SELECT body_z FROM request")]
        stored += [zlib.decompress(row[0]) for row in raw.execute("SELECT body_z FROM response")]
    raw.close()
    assert stored
    assert CANARY.encode() not in b"".join([path.read_bytes(), *stored])
