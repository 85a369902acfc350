"""OpenAI's Files and Batch endpoints at the loopback teacher."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.testing.bulk import Bulk, BulkStore, Result, Row, json_wire
from zephyrctl.testing.documents import Api
from zephyrctl.testing.replies import failure
from zephyrctl.testing.serving import Incoming, Wire

_APIS: dict[str, Api] = {"/v1/chat/completions": "openai", "/v1/responses": "responses"}
_STATUS = {"running": "in_progress", "ended": "completed"}
_PART_NAME = re.compile(rb'name="([^"]*)"')


@dataclass(frozen=True)
class StoredFile:
    """A file as uploaded, or as a batch put it out."""

    id: str
    name: str
    purpose: str
    content: bytes
    created: int = field(default_factory=lambda: int(time.time()))

    def described(self) -> dict[str, Any]:
        """The File object of the API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


class OpenAIBatches:
    """Files and batches: upload, create, poll, list, read, cancel."""

    def __init__(self, store: BulkStore) -> None:
        self.store = store
        self.files: dict[str, StoredFile] = {}

    def operation(self, method: str, thing: str, identity: str, tail: str) -> str:
        """The name of what a request wants, empty where there is no such address."""
        if thing == "files":
            names = {
                ("POST", False, ""): "upload",
                ("GET", True, ""): "file",
                ("GET", True, "content"): "content",
            }
            names[("DELETE", True, "")] = "delete"
        else:
            names = {("POST", False, ""): "create", ("GET", False, ""): "list", ("GET", True, ""): "poll"}
            names[("POST", True, "cancel")] = "cancel"
        return names.get((method, bool(identity), tail), "")

    def answer(
        self, operation: str, identity: str, incoming: Incoming, key: str, query: dict[str, str]
    ) -> Wire:
        """Do what a request wants."""
        if operation == "upload":
            return self._upload(incoming)
        if operation == "create":
            return self._create(json.loads(incoming.body), key)
        if operation == "list":
            page, more = self.store.page("batch_", query, "after")
            ids = [bulk.id for bulk in page]
            first, last = (ids[0], ids[-1]) if ids else (None, None)
            data = [_described(bulk) for bulk in page]
            return json_wire(
                {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}
            )
        if operation in ("file", "content", "delete"):
            return self._file(operation, identity)
        bulk = self.store.find(identity)
        if bulk is None:
            return failure(404, "openai", message=f"no batch {identity}")
        if operation == "cancel":
            self.store.cancel(bulk)
        else:
            self._poll(bulk)
        return json_wire(_described(bulk))

    def _upload(self, incoming: Incoming) -> Wire:
        limit = self.store.plan.max_bytes
        if limit is not None and len(incoming.body) > limit:
            return failure(413, "openai", message="the file is too large")
        parts = _parts(incoming)
        name, content = parts.get("file", ("", b""))
        purpose = parts.get("purpose", ("", b""))[1].decode()
        return json_wire(self._keep(name, purpose, content).described())

    def _keep(self, name: str, purpose: str, content: bytes) -> StoredFile:
        stored = StoredFile(f"file-{len(self.files):06d}", name, purpose, content)
        self.files[stored.id] = stored
        return stored

    def _file(self, operation: str, identity: str) -> Wire:
        stored = self.files.get(identity)
        if stored is None:
            return failure(404, "openai", message=f"no file {identity}")
        if operation == "content":
            return Wire(200, stored.content, {"content-type": "application/octet-stream"})
        if operation == "delete":
            # An empty file stays behind, so that names are not given twice.
            self.files[identity] = StoredFile(identity, stored.name, "deleted", b"")
            return json_wire({"id": identity, "object": "file", "deleted": True})
        return json_wire(stored.described())

    def _create(self, asked: dict[str, Any], key: str) -> Wire:
        stored = self.files.get(str(asked.get("input_file_id")))
        endpoint = str(asked.get("endpoint"))
        if stored is None or stored.purpose != "batch":
            return failure(400, "openai", message="input_file_id names no file of purpose batch")
        if endpoint not in _APIS or asked.get("completion_window") != "24h":
            return failure(400, "openai", message="endpoint or completion_window is not supported")
        rows, errors = _rows(stored.content, endpoint)
        bulk = self.store.submit("batch_", rows, key=key, metadata=dict(asked.get("metadata") or {}))
        bulk.endpoint, bulk.input_file, bulk.errors = endpoint, stored.id, errors
        return json_wire({**_described(bulk), "status": "validating"})

    def _poll(self, bulk: Bulk) -> None:
        self.store.poll(bulk)
        if bulk.results and bulk.output_file is None and bulk.error_file is None:
            good = [_line(result) for result in bulk.results if result.kind == "succeeded"]
            bad = [_line(result) for result in bulk.results if result.kind != "succeeded"]
            if good:
                bulk.output_file = self._keep(f"{bulk.id}_output.jsonl", "batch_output", b"".join(good)).id
            if bad:
                bulk.error_file = self._keep(f"{bulk.id}_error.jsonl", "batch_output", b"".join(bad)).id


def _rows(content: bytes, endpoint: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of an input file, and what is wrong with it."""
    rows, errors = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            asked = json.loads(line)
            row = Row(str(asked["custom_id"]), dict(asked["body"]), _APIS[endpoint])
            right = asked["url"] == endpoint and asked["method"] == "POST"
        except (ValueError, KeyError, TypeError):
            right = False
        if right:
            rows.append(row)
        else:
            errors.append(_error("invalid_line", "not a request for this endpoint", number))
    if not rows and not errors:
        errors.append(_error("empty_file", "the file holds no request", None))
    twice = [identity for identity, times in Counter(row.custom_id for row in rows).items() if times > 1]
    errors += [_error("duplicate_custom_id", f"custom_id {identity} comes twice", None) for identity in twice]
    if len({row.body.get("model") for row in rows}) > 1:
        errors.append(_error("mismatched_model", "all requests of a batch must name one model", None))
    return rows, errors


def _error(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}


def _line(result: Result) -> bytes:
    line: dict[str, Any] = {"id": f"batch_req_{result.custom_id[:12]}", "custom_id": result.custom_id}
    if result.kind in ("expired", "canceled"):
        code = "batch_expired" if result.kind == "expired" else "batch_cancelled"
        line |= {"response": None, "error": {"code": code, "message": "this request was not done"}}
    else:
        body = result.document
        if result.kind == "errored":
            body = json.loads(failure(result.status, "openai").body)
        response = {"status_code": result.status, "request_id": f"req-{result.custom_id[:12]}", "body": body}
        line |= {"response": response, "error": None}
    return json.dumps(line).encode() + b"\n"


def _described(bulk: Bulk) -> dict[str, Any]:
    """The Batch object of the API."""
    ended = None if bulk.running else bulk.created + 1
    return {
        "id": bulk.id,
        "object": "batch",
        "endpoint": bulk.endpoint,
        "input_file_id": bulk.input_file,
        "completion_window": "24h",
        "status": _STATUS.get(bulk.state, bulk.state),
        "created_at": bulk.created,
        "expires_at": bulk.created + 86_400,
        "completed_at": ended if bulk.state == "ended" else None,
        "failed_at": ended if bulk.state == "failed" else None,
        "expired_at": ended if bulk.state == "expired" else None,
        "cancelled_at": ended if bulk.state == "cancelled" else None,
        "output_file_id": bulk.output_file,
        "error_file_id": bulk.error_file,
        "errors": {"object": "list", "data": bulk.errors} if bulk.state == "failed" else None,
        "request_counts": {
            "total": 0 if bulk.state == "failed" else len(bulk.rows),
            "completed": bulk.count("succeeded"),
            "failed": bulk.count("errored", "expired", "canceled"),
        },
        "metadata": bulk.metadata,
    }


def _parts(incoming: Incoming) -> dict[str, tuple[str, bytes]]:
    """The parts of a form with files: by name, the file's name and the content."""
    _, _, boundary = incoming.headers.get("content-type", "").partition("boundary=")
    found = {}
    for part in incoming.body.split(b"--" + boundary.strip('"').encode())[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = _PART_NAME.search(head)
        if name is not None:
            file = re.search(rb'filename="([^"]*)"', head)
            found[name[1].decode()] = (file[1].decode() if file else "", content.removesuffix(b"\r\n"))
    return found
