"""Anthropic's Message Batches at the loopback teacher."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from zephyrctl.testing.bulk import Bulk, BulkStore, Result, Row, json_wire
from zephyrctl.testing.replies import failure
from zephyrctl.testing.serving import Incoming, Wire

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_STATUS = {"running": "in_progress", "cancelling": "canceling"}


class AnthropicBatches:
    """Message Batches: create, poll, list, results, cancel."""

    def __init__(self, store: BulkStore) -> None:
        self.store = store

    def operation(self, method: str, identity: str, tail: str) -> str:
        """The name of what a request wants, empty where there is no such address."""
        names = {
            ("POST", False, ""): "create",
            ("GET", False, ""): "list",
            ("GET", True, ""): "poll",
            ("GET", True, "results"): "results",
            ("POST", True, "cancel"): "cancel",
        }
        return names.get((method, bool(identity), tail), "")

    def answer(
        self, operation: str, identity: str, incoming: Incoming, key: str, query: dict[str, str]
    ) -> Wire:
        """Do what a request wants."""
        host = incoming.headers.get("host", "127.0.0.1")
        here = f"http://{host}{incoming.path.partition('/messages/batches')[0]}/messages/batches"
        if operation == "create":
            return self._create(incoming, key, here)
        if operation == "list":
            page, more = self.store.page("msgbatch_", query, "after_id")
            ids = [bulk.id for bulk in page]
            first, last = (ids[0], ids[-1]) if ids else (None, None)
            data = [_described(bulk, here) for bulk in page]
            return json_wire({"data": data, "first_id": first, "last_id": last, "has_more": more})
        bulk = self.store.find(identity)
        if bulk is None:
            return failure(404, "anthropic", message=f"no batch {identity}")
        if operation == "results":
            if bulk.running:
                return failure(400, "anthropic", message="the batch has not ended")
            lines = b"".join(_line(result) for result in bulk.results)
            return Wire(200, lines, {"content-type": "application/x-jsonl"})
        if operation == "cancel":
            self.store.cancel(bulk)
        else:
            self.store.poll(bulk)
            if bulk.state == "failed" and not bulk.results:
                bulk.results = [Result(row.custom_id, "errored", status=500) for row in bulk.rows]
        return json_wire(_described(bulk, here))

    def _create(self, incoming: Incoming, key: str, here: str) -> Wire:
        limit = self.store.plan.max_bytes
        if limit is not None and len(incoming.body) > limit:
            return failure(413, "anthropic", message="the batch is too large")
        asked = json.loads(incoming.body).get("requests") or []
        rows = [Row(str(one.get("custom_id")), one.get("params") or {}, "anthropic") for one in asked]
        ids = {row.custom_id for row in rows}
        if not rows or len(ids) < len(rows) or not all(map(_CUSTOM_ID.fullmatch, ids)):
            return failure(
                400, "anthropic", message="requests: each needs a custom_id of its own, 1 to 64 letters"
            )
        return json_wire(_described(self.store.submit("msgbatch_", rows, key=key, metadata={}), here))


def _line(result: Result) -> bytes:
    said: dict[str, Any] = {"type": result.kind}
    if result.kind == "succeeded":
        said["message"] = result.document
    elif result.kind == "errored":
        said["error"] = json.loads(failure(result.status, "anthropic").body)
    return json.dumps({"custom_id": result.custom_id, "result": said}).encode() + b"\n"


def _described(bulk: Bulk, here: str) -> dict[str, Any]:
    """The MessageBatch object of the API."""
    ended = not bulk.running
    return {
        "id": bulk.id,
        "type": "message_batch",
        "processing_status": _STATUS.get(bulk.state, "ended"),
        "request_counts": {
            "processing": 0 if ended else len(bulk.rows),
            "succeeded": bulk.count("succeeded"),
            "errored": bulk.count("errored"),
            "canceled": bulk.count("canceled"),
            "expired": bulk.count("expired"),
        },
        "created_at": _when(bulk.created),
        "expires_at": _when(bulk.created + 86_400),
        "ended_at": _when(bulk.created + 1) if ended else None,
        "cancel_initiated_at": _when(bulk.created) if bulk.state in ("cancelling", "cancelled") else None,
        "archived_at": None,
        "results_url": f"{here}/{bulk.id}/results" if ended else None,
    }


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
