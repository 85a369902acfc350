"""The batch APIs of OpenAI and Anthropic, over the wire to a loopback teacher."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bulk_office import PRICE, RUN, Bench, Settings, jobs_of

from zephyrctl.errors import AuthError, ProviderDown, UsageError
from zephyrctl.ledger.entries import Budget
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Batching, BatchLimits, BatchLine, Failure, Rejected, Retryable
from zephyrctl.providers.hosted import anthropic_batch, batch_wire, openai_batch
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.anthropic_batch import BatchedAnthropic
from zephyrctl.providers.hosted.endpoints import Place, origin_of
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.openai_batch import BatchedOpenAI, BatchedResponses
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.testing import bulk_anthropic
from zephyrctl.testing.teacher import LoopbackTeacher

CANARY = "sk-canary-0123456789abcdef"
VENDORS = {"openai": BatchedOpenAI, "responses": BatchedResponses, "anthropic": BatchedAnthropic}


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)


@pytest.fixture(params=VENDORS)
def vendor(request) -> str:
    return str(request.param)


@pytest.fixture
def ledger(tmp_path: Path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def provider_at(teacher: LoopbackTeacher, vendor: str) -> Any:
    url = teacher.url if vendor == "anthropic" else teacher.openai_url
    key = "ANTHROPIC_API_KEY" if vendor == "anthropic" else "OPENAI_API_KEY"
    return VENDORS[vendor]("some-model", Place((url,), origin_of(url), key), price=PRICE)


def at_question(number: int, mode: str) -> Any:
    """A script by which one question is treated in a special way."""

    def script(times: int, body: Mapping[str, Any]) -> str:
        return mode if f"question {number}" in json.dumps(body) else "ok"

    return script


def test_the_vendors_take_batches_and_endpoints_by_name_do_not_seem_to(vendor):
    with LoopbackTeacher() as teacher:
        provider = provider_at(teacher, vendor)
        plain = {"openai": OpenAIProvider, "responses": ResponsesProvider, "anthropic": AnthropicProvider}
        assert isinstance(provider, Batching)
        assert not isinstance(plain[vendor]("some-model", provider.place), Batching)
        documented = (
            BatchLimits(100_000, 256_000_000) if vendor == "anthropic" else BatchLimits(50_000, 200_000_000)
        )
        assert provider.batch_limits == documented


def test_a_batch_from_end_to_end(ledger, vendor):
    with LoopbackTeacher(batch_polls=2, price=PRICE) as teacher:
        jobs = jobs_of(provider_at(teacher, vendor), 5)
        bench = Bench(ledger)
        assert bench.run(jobs) == []
        assert teacher.requests == 0, "nothing was asked online"
        assert teacher.billed_calls == 5
        assert ledger.spend(RUN.id).settled == teacher.billed_uusd > 0
        sent = {json.dumps(dict(row.body), sort_keys=True) for row in teacher.batches[0].rows}
        assert sent == {json.dumps(job.request.body, sort_keys=True) for job in jobs}
        assert {row.custom_id for row in teacher.batches[0].rows} == {job.key for job in jobs}
    answers = [bench.results[job.key] for job in jobs]
    assert all(isinstance(answer, Answer) and answer.text and answer.tokens for answer in answers)


def test_what_a_batch_says_is_what_a_call_says(ledger, vendor):
    with LoopbackTeacher() as teacher:
        provider = provider_at(teacher, vendor)
        jobs = jobs_of(provider, 2)
        bench = Bench(ledger)
        bench.run(jobs)

        async def online(body: Mapping[str, Any]) -> bytes:
            try:
                received = await provider.send(body)
                return bytes(received.body)
            finally:
                await provider.aclose()

        for job in jobs:
            stored = ledger.known([job.key])[job.key]
            said = provider.read(asyncio.run(online(job.request.body)))
            assert (stored.outcome, stored.tokens) == (said.outcome, said.tokens)
            assert bench.results[job.key].text == said.text


ROWS = {
    "error": "failed",
    "500": "left",
    "429": "left",
    "expired": "left",
    "missing": "left",
    "object": "left",
}


@pytest.mark.parametrize("mode", ROWS)
def test_rows_that_get_no_reply(ledger, vendor, mode):
    with LoopbackTeacher(batch_modes=at_question(2, mode)) as teacher:
        jobs = jobs_of(provider_at(teacher, vendor), 4)
        bench = Bench(ledger)
        left = bench.run(jobs)
    if ROWS[mode] == "left":
        assert left == [jobs[2]]
        assert len(bench.results) == 3
    else:
        assert left == []
        failure = bench.results[jobs[2].key]
        assert isinstance(failure, Failure)
        assert failure.reason == "rejected"
    assert ledger.spend(RUN.id).reserved == 0


@pytest.mark.parametrize("mode", ["refusal", "length", "empty"])
def test_billed_outcomes_are_replies(ledger, vendor, mode):
    with LoopbackTeacher(batch_modes=at_question(0, mode)) as teacher:
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider_at(teacher, vendor), 2)) == []
    assert sorted(result.outcome for result in bench.results.values()) == sorted([mode, "text"])


@pytest.mark.parametrize("mode", ["duplicate", "unknown"])
def test_lines_too_many_are_left_out(ledger, vendor, mode):
    with LoopbackTeacher(batch_modes=at_question(1, mode)) as teacher:
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider_at(teacher, vendor), 3)) == []
    assert len(bench.results) == 3
    assert any("they are left out" in text for text in bench.told.texts())


def test_an_expired_batch_keeps_its_first_half(ledger, vendor):
    with LoopbackTeacher(batch_outcomes=["expired"]) as teacher:
        bench = Bench(ledger)
        left = bench.run(jobs_of(provider_at(teacher, vendor), 6))
    assert len(left) == len(bench.results) == 3
    assert ledger.stats(RUN.id).states == {"ok": 3, "error": 3}


def test_no_room_in_openais_queue_waits_and_a_bad_file_goes_online(ledger):
    outcomes = ["failed:token_limit_exceeded", "ok", "failed:invalid_json_line"]
    with LoopbackTeacher(batch_outcomes=outcomes) as teacher:
        provider = provider_at(teacher, "openai")
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider, 2)) == []
        assert len(teacher.batches) == 2
        assert len(bench.run(jobs_of(provider, 3, start=10))) == 3
    assert any("scripted failure" in text for text in bench.told.texts())


def test_files_are_split_by_the_limits(ledger, vendor, monkeypatch):
    module = anthropic_batch if vendor == "anthropic" else openai_batch
    monkeypatch.setattr(module, "LIMITS", BatchLimits(5, 200_000_000))
    with LoopbackTeacher() as teacher:
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider_at(teacher, vendor), 9)) == []
        assert sorted(len(batch.rows) for batch in teacher.batches) == [1, 4, 4]


def test_a_file_larger_than_the_server_takes_is_halved(ledger, vendor):
    with LoopbackTeacher(batch_max_bytes=1900) as teacher:
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider_at(teacher, vendor), 9)) == []
        assert len(teacher.batches) > 1
        assert teacher.billed_calls == 9


FAULTS = ["429", "500", "503", "drop", "rst", "truncated", "html"]
OPERATIONS = {
    "openai": ["upload", "create", "poll", "content"],
    "anthropic": ["create", "poll", "results"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("vendor", "operation"), [(v, o) for v, os in OPERATIONS.items() for o in os])
def test_a_fault_at_any_operation_is_outlived_and_nothing_is_billed_twice(ledger, vendor, operation, fault):
    with LoopbackTeacher(batch_faults={operation: [fault]}) as teacher:
        bench = Bench(ledger)
        assert bench.run(jobs_of(provider_at(teacher, vendor), 3)) == []
        assert teacher.billed_calls == 3
        assert len(teacher.batches) == 1
    assert len(bench.results) == 3


def test_a_batch_is_found_in_a_long_list(vendor):
    with LoopbackTeacher(batch_polls=0) as teacher:
        provider = provider_at(teacher, vendor)
        lines = [[BatchLine(job.key, job.request.body)] for job in jobs_of(provider, 3)]
        names = ["20261122T190000Z-a", "20261122T190000Z-b", "20261122T190000Z-c"]

        async def work() -> list[str | None]:
            remote = [
                await provider.batch_submit(name, line) for name, line in zip(names, lines, strict=True)
            ]
            for name in remote:
                await provider.batch_poll(name)
            found = [
                await provider.batch_find(name, [line[0].custom_id], set())
                for name, line in zip(names, lines, strict=True)
            ]
            assert found == remote
            return [await provider.batch_find("20261122T190000Z-d", ["f" * 64], set())]

        assert asyncio.run(work()) == [None]


def test_the_list_is_read_no_further_back_than_needed(vendor, monkeypatch):
    module = anthropic_batch if vendor == "anthropic" else openai_batch
    monkeypatch.setattr(module, "_PAGE", 1)
    with LoopbackTeacher(batch_polls=0) as teacher:
        provider = provider_at(teacher, vendor)
        line = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 1)]

        async def work() -> None:
            for name in ("20261122T190000Z-a", "20261122T190000Z-b", "20261122T190000Z-c"):
                remote = await provider.batch_submit(name, line)
                await provider.batch_poll(remote)
            assert await provider.batch_find("20991231T000000Z-x", ["f" * 64], set()) is None

        asyncio.run(work())
        pages = sum(
            times for what, times in teacher.others.items() if what.startswith("GET") and "000" not in what
        )
    assert pages == 1


def test_an_unfinished_batch_of_the_same_size_could_be_ours_at_anthropic():
    with LoopbackTeacher(batch_polls=2) as teacher:
        provider = provider_at(teacher, "anthropic")
        jobs = jobs_of(provider, 3)
        lines = [BatchLine(job.key, job.request.body) for job in jobs]
        keys = [job.key for job in jobs]

        async def work() -> None:
            theirs = await provider.batch_submit(
                "", [replace(line, custom_id=f"x{line.custom_id[1:]}") for line in lines]
            )
            with pytest.raises(Retryable, match="may be this batch"):
                await provider.batch_find("20261122T190000Z-a", keys, set())
            assert await provider.batch_find("20261122T190000Z-a", keys, {theirs}) is None
            assert await provider.batch_find("20261122T190000Z-a", keys[:2], set()) is None
            for _ in range(3):
                await provider.batch_poll(theirs)
            assert await provider.batch_find("20261122T190000Z-a", keys, set()) is None, "other custom ids"

        asyncio.run(work())


def test_a_batch_that_is_not_kept_any_more_is_lost(vendor):
    with LoopbackTeacher() as teacher:
        provider = provider_at(teacher, vendor)
        name = "msgbatch_000099" if vendor == "anthropic" else "batch_000099"
        assert asyncio.run(provider.batch_poll(name)).state == "lost"


def test_cancelling_keeps_what_is_done(vendor):
    with LoopbackTeacher(batch_polls=5) as teacher:
        provider = provider_at(teacher, vendor)
        lines = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 4)]

        async def work() -> list[str]:
            remote = await provider.batch_submit("20261122T190000Z-a", lines)
            await provider.batch_cancel(remote)
            assert (await provider.batch_poll(remote)).state == "ended"
            return [result.reason async for result in provider.batch_results(remote)]

        assert sorted(asyncio.run(work())) == ["", "", "cancelled", "cancelled"]


# --- keys and addresses ---


@pytest.mark.parametrize(("mode", "error"), [("401", AuthError), ("403", AuthError), ("quota", AuthError)])
def test_a_refused_key_stops_at_once_and_is_nowhere_to_be_read(ledger, vendor, mode, error):
    operation = "create" if vendor == "anthropic" else "upload"
    with LoopbackTeacher(batch_faults={operation: [mode] * 3}) as teacher:
        bench = Bench(ledger)
        with pytest.raises(error) as caught:
            bench.run(jobs_of(provider_at(teacher, vendor), 2))
        assert sum(teacher.others.values()) == 1
    chain: BaseException | None = caught.value
    while chain is not None:
        assert CANARY not in f"{chain!r} {chain.__dict__} {chain.args}"
        chain = chain.__cause__ or chain.__context__
    assert CANARY not in str(bench.told.events)
    ledger.close()
    assert CANARY.encode() not in ledger.path.read_bytes()


def test_a_server_without_batches_says_so(vendor):
    with LoopbackTeacher() as teacher:
        provider = provider_at(teacher, vendor)
        provider.place = replace(provider.place, urls=(f"{teacher.url}/nowhere/",))
        teacher._desk.answer = lambda *_, **__: None  # type: ignore[method-assign]
        line = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 1)]
        with pytest.raises(UsageError, match="takes no batches") as caught:
            asyncio.run(provider.batch_submit("20261122T190000Z-a", line))
    assert "--mode online" in (caught.value.hint or "")


def test_redirects_are_not_followed(vendor):
    operation = "create" if vendor == "anthropic" else "upload"
    with LoopbackTeacher(batch_faults={operation: ["redirect"]}) as teacher:
        provider = provider_at(teacher, vendor)
        line = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 1)]
        with pytest.raises(UsageError, match="redirect"):
            asyncio.run(provider.batch_submit("20261122T190000Z-a", line))
        assert sum(teacher.others.values()) == 1


@pytest.mark.parametrize("mode", ["huge", "bomb"])
def test_a_control_reply_beyond_the_cap_is_not_read(vendor, mode):
    with LoopbackTeacher(batch_faults={"poll": [mode]}) as teacher:
        provider = provider_at(teacher, vendor)
        line = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 1)]

        async def work() -> None:
            remote = await provider.batch_submit("20261122T190000Z-a", line)
            await provider.batch_poll(remote)

        with pytest.raises((Rejected, Retryable)):
            asyncio.run(work())


def test_the_key_goes_to_no_address_that_a_reply_names(monkeypatch):
    """Anthropic tells where results are; they are read from where the batch was handed in all the same."""
    described = bulk_anthropic._described
    with LoopbackTeacher(batch_polls=0) as elsewhere, LoopbackTeacher(batch_polls=0) as teacher:
        monkeypatch.setattr(bulk_anthropic, "_described", lambda bulk, here: described(bulk, elsewhere.url))
        provider = provider_at(teacher, "anthropic")
        line = [BatchLine(job.key, job.request.body) for job in jobs_of(provider, 1)]

        async def work() -> int:
            remote = await provider.batch_submit("20261122T190000Z-a", line)
            await provider.batch_poll(remote)
            return len([result async for result in provider.batch_results(remote)])

        assert asyncio.run(work()) == 1
        assert sum(elsewhere.others.values()) == 0
        assert any(what.endswith("/results") for what in teacher.others)


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_result_file_that_is_not_kept_any_more_counts_as_charged(ledger, vendor):
    operation = "results" if vendor == "anthropic" else "content"
    with LoopbackTeacher(batch_faults={operation: ["404", "404"]}) as teacher:
        jobs = jobs_of(provider_at(teacher, vendor), 2)
        bench = Bench(ledger)
        assert bench.run(jobs) == jobs
    assert ledger.stats(RUN.id).states == {"in_doubt": 2}
    assert ledger.batches() == []


@pytest.mark.parametrize("mode", ["400", "huge"])
def test_a_poll_that_is_rejected_again_and_again_leaves_the_batch_open(ledger, vendor, mode):
    with (
        LoopbackTeacher(batch_faults={"poll": [mode] * 25}) as teacher,
        pytest.raises(ProviderDown, match="failed in a row"),
    ):
        Bench(ledger).run(jobs_of(provider_at(teacher, vendor), 2))
    assert [batch.state for batch in ledger.batches()] == ["open"]


# --- lines ---


class Pieces:
    """A reply in pieces of a given size."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content, self.size = content, size

    async def __aenter__(self) -> Pieces:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def iter_bytes(self, chunk_size: int | None = None):
        for start in range(0, len(self.content), self.size):
            yield self.content[start : start + self.size]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_are_whole_whatever_the_pieces(size, monkeypatch):
    monkeypatch.setattr(batch_wire, "LINE_CAP", 20)
    door = batch_wire.Door("http://127.0.0.1:1", CANARY, None, "m")
    content = b"one\n\n" + b"x" * 50 + b"\ntwo\r\n  \n" + b"y" * 19 + b"\nlast"

    async def work() -> list[bytes]:
        return [line async for line in batch_wire.lines_of(door, lambda: Pieces(content, size))]

    lines = asyncio.run(work())
    assert [line.strip() for line in lines if not line.startswith(b"x")] == [
        b"one",
        b"two",
        b"y" * 19,
        b"last",
    ]
    assert not any(line.startswith(b"x") and len(line) > 20 + size for line in lines)
    assert CANARY not in repr(door)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b'{"custom_id": 3}', b'{"response": {}}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_line_that_names_no_request_is_passed_over(line):
    assert openai_batch.read_result(line) is None
    assert anthropic_batch.read_result(line) is None


@pytest.mark.parametrize(
    ("line", "reason", "final"),
    [
        ({"response": {"status_code": 400, "body": {"error": {"message": "no"}}}}, "rejected", True),
        ({"response": {"status_code": 400}, "error": {"message": "no"}}, "rejected", True),
        ({"response": {"status_code": 401, "body": None}}, "server_error", False),
        ({"response": {"status_code": 429, "body": None}}, "rate_limit", False),
        ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, "expired", False),
        ({"response": None, "error": {"code": "batch_cancelled"}}, "cancelled", False),
        ({"response": {"status_code": 200, "body": None}}, "server_error", False),
        ({}, "server_error", False),
    ],
)
def test_what_openais_error_lines_mean(line, reason, final):
    result = openai_batch.read_result(json.dumps({"custom_id": "k", **line}).encode())
    assert result is not None
    assert (result.body, result.reason, result.final) == (None, reason, final)


@pytest.mark.parametrize(
    ("result", "reason", "final"),
    [
        ({"type": "expired"}, "expired", False),
        ({"type": "canceled"}, "cancelled", False),
        ({"type": "errored", "error": {"error": {"type": "invalid_request_error"}}}, "rejected", True),
        ({"type": "errored", "error": {"type": "overloaded_error"}}, "server_error", False),
        ({"type": "errored"}, "server_error", False),
        ({"type": "succeeded"}, "server_error", False),
        ("text", "server_error", False),
    ],
)
def test_what_anthropics_lines_mean(result, reason, final):
    read = anthropic_batch.read_result(json.dumps({"custom_id": "k", "result": result}).encode())
    assert read is not None
    assert (read.body, read.reason, read.final) == (None, reason, final)


def test_a_lone_surrogate_in_a_reply_stays_what_it_is():
    line = b'{"custom_id": "k", "response": {"status_code": 200, "body": {"x": "\\ud83d"}}}'
    result = openai_batch.read_result(line)
    assert result is not None
    assert result.body == b'{"x":"\\ud83d"}'


# --- killed for real ---

_CHILD = """
import asyncio, os, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from bulk_office import Bench, Settings, jobs_of
from test_bulk_vendors import VENDORS
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price
from zephyrctl.providers.calling import bulk_batch
from zephyrctl.providers.hosted.endpoints import Place, origin_of

point, vendor, url, path = sys.argv[1:]
bulk_batch._GROUP = 2

def die_at(cls, name):
    def die(*_, **__):
        os._exit(9)
    setattr(cls, name, die)

ledger = Ledger.open(Path(path))
variable = "ANTHROPIC_API_KEY" if vendor == "anthropic" else "OPENAI_API_KEY"
provider = VENDORS[vendor]("some-model", Place((url,), origin_of(url), variable), price=Price(2.0, 10.0))
if point == "handed in":
    die_at(Ledger, "set_batch")
elif point == "open":
    die_at(type(provider), "batch_poll")
elif point == "half":
    real = Ledger.fail_many
    Ledger.fail_many = lambda *a: os._exit(9)
Bench(ledger).run(jobs_of(provider, 5))
os._exit(0)
"""


@pytest.mark.parametrize("point", ["handed in", "open", "half"])
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_killed_process_is_gone_on_with_and_nothing_is_billed_twice(tmp_path, vendor, point):
    path = tmp_path / "ledger.sqlite"
    with LoopbackTeacher(batch_polls=1, price=PRICE) as teacher:
        provider = provider_at(teacher, vendor)
        child = _CHILD.format(here=str(Path(__file__).parent))
        url = provider.place.urls[0]
        ended = subprocess.run([sys.executable, "-c", child, point, vendor, url, str(path)], check=False)
        assert ended.returncode == 9
        with Ledger.open(path) as ledger:
            stored = 2 if point == "half" else 0
            assert len(ledger.known([job.key for job in jobs_of(provider, 5)])) == stored
            bench = Bench(ledger, Settings(Budget(step=10_000_000)))
            assert bench.run(jobs_of(provider, 5)) == []
            assert len(bench.results) == 5
            assert len(teacher.batches) == 1
            assert list(teacher.billed.values()) == [1] * 5
            spend = ledger.spend(RUN.id)
            assert (spend.settled, spend.doubt, spend.reserved) == (teacher.billed_uusd, 0, 0)
