"""Batches at the loopback teacher, through the vendors' own SDKs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from wire_clients import fetch, question

from zephyrctl.money import Price
from zephyrctl.testing.answers import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher

ENDPOINT = "/v1/chat/completions"
IDS = [f"{n:064x}" for n in range(6)]


class OpenAIClient:
    """Hands in, looks and reads with the `openai` SDK."""

    prefix = "batch_"

    def __init__(self, teacher: LoopbackTeacher) -> None:
        self.sdk = openai.OpenAI(api_key="sk-batch", base_url=teacher.openai_url, max_retries=0)

    def submit(self, bodies: dict[str, dict[str, Any]], **metadata: str) -> str:
        lines = [
            {"custom_id": i, "method": "POST", "url": ENDPOINT, "body": body} for i, body in bodies.items()
        ]
        return self.submit_file("".join(json.dumps(line) + "\n" for line in lines), **metadata)

    def submit_file(self, text: str, **metadata: str) -> str:
        stored = self.sdk.files.create(file=("rows.jsonl", text.encode()), purpose="batch")
        assert self.sdk.files.retrieve(stored.id).bytes == len(text)
        return self.sdk.batches.create(
            input_file_id=stored.id, endpoint=ENDPOINT, completion_window="24h", metadata=metadata
        ).id

    def poll(self, identity: str) -> str:
        return self.sdk.batches.retrieve(identity).status

    def results(self, identity: str) -> list[tuple[str, Any]]:
        """Each line's custom_id with the text of its answer or the code of its error."""
        batch = self.sdk.batches.retrieve(identity)
        found = []
        for name in (batch.output_file_id, batch.error_file_id):
            for line in self.sdk.files.content(name).text.splitlines() if name else []:
                row = json.loads(line)
                body = (row["response"] or {}).get("body", {})
                if "choices" in body:
                    assert name == batch.output_file_id
                    said = body["choices"][0]["message"]["content"]
                else:
                    said = row["error"]["code"] if row["error"] else body.get("error", {}).get("type")
                found.append((row["custom_id"], said))
        return found

    def listed(self, limit: int) -> list[str]:
        return [batch.id for batch in self.sdk.batches.list(limit=limit)]

    def cancel(self, identity: str) -> str:
        return self.sdk.batches.cancel(identity).status


class AnthropicClient:
    """The same with the `anthropic` SDK."""

    prefix = "msgbatch_"

    def __init__(self, teacher: LoopbackTeacher) -> None:
        self.sdk = anthropic.Anthropic(api_key="sk-batch", base_url=teacher.url, max_retries=0)

    def submit(self, bodies: dict[str, dict[str, Any]]) -> str:
        rows: Any = [{"custom_id": identity, "params": body} for identity, body in bodies.items()]
        return self.sdk.messages.batches.create(requests=rows).id

    def poll(self, identity: str) -> str:
        status = self.sdk.messages.batches.retrieve(identity).processing_status
        return {"ended": "completed", "canceling": "cancelling"}.get(status, status)

    def results(self, identity: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for row in self.sdk.messages.batches.results(identity):
            result = row.result
            if result.type == "succeeded":
                parts = getattr(result.message, "content", None)
                found.append((row.custom_id, parts[0].text if parts else None))
            else:
                found.append(
                    (row.custom_id, result.error.error.type if result.type == "errored" else result.type)
                )
        return found

    def listed(self, limit: int) -> list[str]:
        return [batch.id for batch in self.sdk.messages.batches.list(limit=limit)]

    def cancel(self, identity: str) -> str:
        self.sdk.messages.batches.cancel(identity)
        return self.poll_without_time(identity)

    def poll_without_time(self, identity: str) -> str:
        status = next(b.processing_status for b in self.sdk.messages.batches.list() if b.id == identity)
        return {"canceling": "cancelling"}.get(status, status)


@pytest.fixture(params=[OpenAIClient, AnthropicClient])
def kind(request: pytest.FixtureRequest) -> type[OpenAIClient] | type[AnthropicClient]:
    return request.param  # type: ignore[no-any-return]


Kind = type[OpenAIClient] | type[AnthropicClient]


@pytest.fixture
def bodies() -> dict[str, dict[str, Any]]:
    return {identity: question(f"Add {n} and 4.") for n, identity in enumerate(IDS)}


@pytest.fixture
def openai_only() -> Iterator[tuple[LoopbackTeacher, OpenAIClient]]:
    with LoopbackTeacher(batch_polls=0) as teacher:
        yield teacher, OpenAIClient(teacher)


def test_a_batch_from_end_to_end(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    price = Price(input=10.0, output=1000.0)
    with LoopbackTeacher(batch_polls=2, price=price) as teacher:
        client = kind(teacher)
        identity = client.submit(bodies)
        assert [client.poll(identity) for _ in range(2)] == ["in_progress"] * 2
        assert teacher.billed_calls == 0
        assert client.poll(identity) == "completed"
        results = client.results(identity)
        client.poll(identity)
    assert dict(results) == {i: answer_text(body) for i, body in bodies.items()}
    assert len(results) == len(bodies)
    assert [i for i, _ in results] != list(bodies)
    assert teacher.billed == {json.dumps(body, sort_keys=True): 1 for body in bodies.values()}
    assert teacher.billed_by_key == {"sk-batch": 6}
    words = sum(len(answer_text(body).split()) for body in bodies.values())
    assert teacher.billed_uusd == (6 * 4 * 10 + words * 1000) / 2
    assert teacher.requests == 0
    (batch,) = teacher.batches
    assert [row.custom_id for row in batch.rows] == IDS


def test_what_may_come_of_rows(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    modes = ["ok", "error", "expired", "missing", "duplicate", "unknown"]
    with LoopbackTeacher(batch_polls=0, batch_modes=modes, batch_shuffled=False) as teacher:
        client = kind(teacher)
        identity = client.submit(bodies)
        assert client.poll(identity) == "completed"
        results = client.results(identity)
        right = {i: answer_text(body) for i, body in bodies.items()}
        expired = "batch_expired" if kind is OpenAIClient else "expired"
        assert sorted(results) == sorted(
            [
                (IDS[0], right[IDS[0]]),
                (IDS[1], "invalid_request_error"),
                (IDS[2], expired),
                (IDS[4], right[IDS[4]]),
                (IDS[4], right[IDS[4]]),
                (IDS[5], right[IDS[5]]),
                ("unknown-0", right[IDS[5]]),
            ]
        )
        assert teacher.billed_calls == 3
        again = client.submit({i: bodies[i] for i in IDS[1:3]})
        client.poll(again)
        assert dict(client.results(again)) == {i: right[i] for i in IDS[1:3]}


def test_row_modes_may_go_by_body(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    def modes(times: int, body: Any) -> str:
        return "object" if "Add 1 " in str(body) else "529" if times == 0 and "Add 2 " in str(body) else "ok"

    with LoopbackTeacher(batch_polls=0, batch_modes=modes) as teacher:
        client = kind(teacher)
        first, second = client.submit(bodies), client.submit(bodies)
        for identity in (first, second):
            client.poll(identity)
        one, other = dict(client.results(first)), dict(client.results(second))
    assert one[IDS[1]] is other[IDS[1]] is None
    assert one[IDS[2]] in ("server_error", "overloaded_error")
    assert other[IDS[2]] == answer_text(bodies[IDS[2]])
    assert teacher.billed_calls == 4 + 5


def test_a_batch_that_expires_gives_what_was_done(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher(batch_polls=0, batch_outcomes=["expired"]) as teacher:
        client = kind(teacher)
        identity = client.submit(bodies)
        assert client.poll(identity) == ("expired" if kind is OpenAIClient else "completed")
        results = dict(client.results(identity))
    assert [results[i] for i in IDS[:3]] == [answer_text(bodies[i]) for i in IDS[:3]]
    assert {results[i] for i in IDS[3:]} <= {"batch_expired", "expired"}
    assert teacher.billed_calls == 3


def test_a_cancelled_batch_gives_what_was_done(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher(batch_polls=5) as teacher:
        client = kind(teacher)
        identity = client.submit(bodies)
        assert client.cancel(identity) == "cancelling"
        assert client.poll(identity) == ("cancelled" if kind is OpenAIClient else "completed")
        results = dict(client.results(identity))
    assert {results[i] for i in IDS[3:]} <= {"batch_cancelled", "canceled"}
    assert teacher.billed_calls == 3


def test_lists_have_pages_newest_first(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher() as teacher:
        client = kind(teacher)
        made = [client.submit(bodies) for _ in range(5)]
        (OpenAIClient if kind is AnthropicClient else AnthropicClient)(teacher).submit(bodies)
        assert client.listed(limit=2) == made[::-1]
        assert client.listed(limit=20) == made[::-1]
        assert len(teacher.batches) == 6


def test_a_batch_that_fails_as_a_whole(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher(batch_polls=0, batch_outcomes=["failed:token_limit_exceeded"]) as teacher:
        client = kind(teacher)
        identity = client.submit(bodies)
        assert client.poll(identity) == ("failed" if kind is OpenAIClient else "completed")
        if isinstance(client, OpenAIClient):
            batch = client.sdk.batches.retrieve(identity)
            assert batch.errors is not None
            assert batch.errors.data is not None
            assert batch.errors.data[0].code == "token_limit_exceeded"
            assert batch.output_file_id is batch.error_file_id is None
        else:
            assert {said for _, said in client.results(identity)} == {"api_error"}
        assert teacher.billed_calls == 0


def test_too_large(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher(batch_max_bytes=500) as teacher:
        with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
            kind(teacher).submit(bodies)
        assert caught.value.status_code == 413
        assert teacher.batches == []


@pytest.mark.parametrize("fault", ["503", "close", "drop", "rst", "html"])
def test_faults_before_and_after_the_work(kind: Kind, bodies: dict[str, dict[str, Any]], fault: str) -> None:
    with LoopbackTeacher(batch_polls=0, batch_faults={"create": [fault]}) as teacher:
        client = kind(teacher)
        lost = fault in ("drop", "rst", "html")
        error = AttributeError if fault == "html" else (openai.APIError, anthropic.APIError)
        with pytest.raises(error):
            client.submit(bodies)
        assert len(teacher.batches) == lost
        assert len(client.listed(limit=5)) == lost
        client.submit(bodies)
        assert len(teacher.batches) == lost + 1


def test_batches_outlive_their_client(kind: Kind, bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher() as teacher:
        identity = kind(teacher).submit(bodies)
        assert kind(teacher).poll(identity) == "in_progress"
        assert kind(teacher).poll(identity) == "completed"
        assert len(kind(teacher).results(identity)) == 6
        assert kind(teacher).listed(limit=1) == [identity]


def test_metadata_files_and_responses(openai_only: tuple[LoopbackTeacher, OpenAIClient]) -> None:
    _, client = openai_only
    identity = client.submit({"a": question()}, zephyrctl="batch-7")
    assert client.sdk.batches.retrieve(identity).metadata == {"zephyrctl": "batch-7"}
    assert [batch.metadata for batch in client.sdk.batches.list()] == [{"zephyrctl": "batch-7"}]
    line = {
        "custom_id": "r",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "m", "input": "Hi."},
    }
    stored = client.sdk.files.create(file=("r.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.sdk.batches.create(
        input_file_id=stored.id, endpoint="/v1/responses", completion_window="24h"
    )
    assert batch.status == "validating"
    output = client.sdk.batches.retrieve(batch.id).output_file_id
    assert output is not None
    row = json.loads(client.sdk.files.content(output).text)
    assert row["response"]["body"]["object"] == "response"
    assert client.sdk.files.delete(stored.id).deleted
    assert client.sdk.files.content(stored.id).text == ""
    with pytest.raises(openai.NotFoundError):
        client.sdk.files.retrieve("file-999999")
    with pytest.raises(openai.NotFoundError):
        client.poll("batch_999999")


BAD_FILES = {
    "empty_file": [],
    "invalid_line": ['{"custom_id": "a"}'],
    "duplicate_custom_id": [("a", "gpt-test"), ("a", "gpt-test")],
    "mismatched_model": [("a", "gpt-test"), ("b", "gpt-else")],
}


@pytest.mark.parametrize("code", BAD_FILES)
def test_files_that_do_not_validate(openai_only: tuple[LoopbackTeacher, OpenAIClient], code: str) -> None:
    teacher, client = openai_only
    lines = []
    for row in BAD_FILES[code]:
        if isinstance(row, tuple):
            body = question(model=row[1])
            lines.append(json.dumps({"custom_id": row[0], "method": "POST", "url": ENDPOINT, "body": body}))
        else:
            lines.append(row)
    identity = client.submit_file("\n".join(lines))
    assert client.poll(identity) == "failed"
    errors = client.sdk.batches.retrieve(identity).errors
    assert errors is not None
    assert errors.data is not None
    assert {error.code for error in errors.data} == {code}
    assert teacher.billed_calls == 0


def test_requests_about_batches_that_are_refused(bodies: dict[str, dict[str, Any]]) -> None:
    with LoopbackTeacher() as teacher:
        one, other = OpenAIClient(teacher), AnthropicClient(teacher)
        with pytest.raises(openai.BadRequestError):
            one.sdk.batches.create(input_file_id="file-9", endpoint=ENDPOINT, completion_window="24h")
        with pytest.raises(anthropic.BadRequestError):
            other.submit({})
        with pytest.raises(anthropic.BadRequestError):
            other.submit({"x" * 65: question()})
        with pytest.raises(anthropic.NotFoundError):
            other.poll("msgbatch_9")
        identity = other.submit(bodies)
        early = fetch(teacher, "GET", f"/v1/messages/batches/{identity}/results")
        assert early.status == 400
        assert fetch(teacher, "POST", f"/v1/files/{identity}", {}).status == 404
