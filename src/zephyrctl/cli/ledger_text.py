"""How `zephyrctl ledger` looks in a terminal (pure)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.console import plain_table
from zephyrctl.money import dollars

if TYPE_CHECKING:
    from zephyrctl.ledger.absorb import Taken
    from zephyrctl.ledger.check import Verdict
    from zephyrctl.ledger.entries import Batch
    from zephyrctl.ledger.report import Cost, Line
    from zephyrctl.providers.batchfile import Imported

_COLUMNS = (
    "calls", "replies", "tokens in", "cached", "tokens out", "reasoning", "paid", "in doubt", "in flight", "not text",
)  # fmt: skip
_KEY_DIGITS = 12


def costs_text(by: str, found: Sequence[Cost], whole: Cost) -> str:
    """The groups and their sum; columns that are empty throughout are left out."""
    rows = [_cost_row(cost) for cost in found]
    if len(found) > 1:
        rows.append(_cost_row(whole))
    used = [0, *(n for n in range(1, len(_COLUMNS) + 1) if n < 3 or any(row[n] for row in rows))]
    cells = tuple(tuple(row[n] or "-" for n in used) for row in rows)
    return plain_table(tuple((by, *_COLUMNS)[n] for n in used), cells)


def _cost_row(cost: Cost) -> tuple[str, ...]:
    others = ", ".join(f"{count:,} {name}" for name, count in cost.outcomes.items() if name != "text")
    doubt = (
        f"{cost.doubt:,}: {_money(cost.doubt_uusd, cost.doubt, cost.doubt_unpriced)}" if cost.doubt else ""
    )
    flying = f"{cost.open:,}: {dollars(cost.reserved_uusd)} reserved" if cost.open else ""
    tokens = (cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens, cost.reasoning_tokens)
    return (
        cost.group,
        f"{cost.calls:,}",
        f"{cost.replies:,}",
        *(f"{number:,}" if number else "" for number in tokens),
        _money(cost.paid_uusd, cost.replies, cost.unpriced),
        doubt,
        flying,
        others,
    )


def _money(uusd: int, calls: int, unpriced: int) -> str:
    if not unpriced:
        return dollars(uusd)
    if unpriced == calls:
        return "unknown"
    return f"{dollars(uusd)} + {unpriced:,} of unknown price"


def lines_text(found: Sequence[Line]) -> str:
    """Calls, one a line."""
    if not found:
        return ""
    columns = ("key", "when", "model", "step", "state", "outcome", "tokens", "cost")
    rows = []
    for line in found:
        tokens = (
            "" if line.prompt_tokens is None else f"{line.prompt_tokens:,}+{line.completion_tokens or 0:,}"
        )
        state = f"{line.state} ({line.error})" if line.error and line.state != "ok" else line.state
        cost = "" if line.cost_uusd is None else dollars(line.cost_uusd)
        cells = (
            line.key[:_KEY_DIGITS],
            _when(line.started),
            line.model,
            line.step,
            state,
            line.outcome,
            tokens,
            cost,
        )
        rows.append(tuple(cell or "-" for cell in cells))
    return plain_table(columns, tuple(rows))


def call_text(found: Mapping[str, Any]) -> str:
    """One call in full: what was asked, the attempts, what was said."""
    lines = [
        found["key"],
        f"  model     {found['model']} at {found['origin']} ({found['endpoint']}), draw {found['draw']}",
        f"  first     {_when(found['created'])}",
        f"  used by   {', '.join(found['used_by']) or 'nothing'}",
        "request",
        _indented(_asked(found["body"])),
    ]
    for attempt in found["attempts"]:
        lines.append(f"attempt {attempt['n'] + 1}: {_attempt_text(attempt)}")
    reply = found["reply"]
    if reply is None:
        return "\n".join([*lines, "no reply"])
    served = f", served by {reply['served_model']}" if reply["served_model"] else ""
    usage = f", {reply['usage'][0]:,} tokens in, {reply['usage'][1]:,} out" if reply["usage"] else ""
    lines.append(
        f"reply: {reply['outcome']} (finish reason {reply['finish_reason'] or 'none'}){served}{usage}"
    )
    said = spoken(found["endpoint"], reply["body"])
    return "\n".join([*lines, _indented(_plain(reply["body"]) if said is None else said)])


def _asked(body: Any) -> str:
    """A request's settings on one line and its messages below, where it has the usual form."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages
    ):
        return _plain(body)
    settings = {name: value for name, value in body.items() if name != "messages"}
    parts = [json.dumps(settings, ensure_ascii=False)]
    parts += [f"({message.get('role', '?')})\n{message['content']}" for message in messages]
    return "\n".join(parts)


def spoken(endpoint: str, body: Any) -> str | None:
    """The words of a reply, apart from its envelope; None where it is none that a provider here can read."""
    from zephyrctl.providers.base import Retryable
    from zephyrctl.providers.hosted.anthropic import AnthropicProvider
    from zephyrctl.providers.hosted.endpoints import Place
    from zephyrctl.providers.hosted.openai import OpenAIProvider
    from zephyrctl.providers.hosted.responses import ResponsesProvider

    if not isinstance(body, dict):
        return None
    if isinstance(body.get("text"), str):
        return str(body["text"])
    readers = (AnthropicProvider, ResponsesProvider, OpenAIProvider)
    reader = next((cls for cls in readers if endpoint == cls.endpoint), OpenAIProvider)
    try:
        read = reader("model", Place((), "", offline=True)).read(json.dumps(body).encode("ascii"))
    except Retryable:
        return None
    reasoning = f"(reasoning)\n{read.reasoning}\n(answer)\n" if read.reasoning else ""
    return reasoning + read.text


def _attempt_text(attempt: Mapping[str, Any]) -> str:
    parts = [attempt["state"], attempt["step"], _when(attempt["started"])]
    if attempt["ended"] is not None and attempt["ended"] >= attempt["started"]:
        parts.append(f"took {attempt['ended'] - attempt['started']:.1f} s")
    if attempt["error_class"]:
        parts.append(str(attempt["error_class"]))
    if attempt["http_status"]:
        parts.append(f"HTTP {attempt['http_status']}")
    if attempt["request_id"]:
        parts.append(f"request id {attempt['request_id']}")
    if attempt["cost_uusd"] is not None:
        parts.append(dollars(attempt["cost_uusd"]))
    elif attempt["reserved_uusd"] is not None:
        parts.append(f"at most {dollars(attempt['reserved_uusd'])}")
    if attempt["batch"]:
        parts.append(f"batch {attempt['batch']}")
    return ", ".join(parts)


def taken_text(place: object, taken: Taken) -> str:
    """What came in, as one line."""
    known = taken.seen - taken.requests
    updated = f", {taken.updated:,} completed" if taken.updated else ""
    return (
        f"{place}: {taken.seen:,} requests looked at, {known:,} known; new: {taken.requests:,} requests, "
        f"{taken.replies:,} replies, {taken.attempts:,} attempts{updated}"
    )


def verdict_text(path: object, verdict: Verdict) -> str:
    """What was checked, and every fault with the places where it was met first."""
    state = "whole" if verdict.whole else "DAMAGED"
    lines = [
        f"{path}: {state}; {verdict.requests:,} requests, {verdict.replies:,} replies, {verdict.attempts:,} attempts; "
        f"{verdict.in_flight:,} in flight, {verdict.open_batches:,} open batches"
    ]
    for finding in verdict.findings:
        more = ", …" if finding.count > len(finding.where) else ""
        lines.append(f"  {finding.count:,} {finding.what}: {', '.join(finding.where)}{more}")
    return "\n".join(lines)


def batches_text(found: Sequence[Batch]) -> str:
    """Batches, one a line."""
    if not found:
        return ""
    columns = ("batch", "made", "model", "state", "requests", "name at the provider", "step")
    rows = tuple(
        (b.id, _when(b.created), b.model, b.state, f"{len(b.keys):,}", b.remote_id or "-", b.run_id)
        for b in found
    )
    return plain_table(columns, rows)


def imported_text(file: object, found: Imported) -> str:
    """What a file of replies brought, as one line."""
    parts = [
        f"{file}: {found.stored:,} new replies",
        f"{found.already:,} known",
        f"{found.errors:,} errors",
        f"{found.unknown:,} that are no request of this ledger",
        f"{found.busy:,} that are being asked elsewhere",
    ]
    return ", ".join(part for n, part in enumerate(parts) if n == 0 or not part.startswith("0 "))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _plain(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, indent=2)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
