"""A teacher on 127.0.0.1 with the APIs of OpenAI and Anthropic. It fails as told and counts what it would bill.

with LoopbackTeacher(script=["429", "500", "ok"]) as teacher:
    os.environ["OPENAI_BASE_URL"] = teacher.openai_url  # then ask as usual
assert teacher.billed_calls == 1

In a terminal: `python -m zephyrctl.testing.teacher --script 429,ok` prints the addresses to export.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from zephyrctl.money import UUSD, Price, Tokens
from zephyrctl.sandbox.teacher import ROLES
from zephyrctl.testing.allowance import Allowance
from zephyrctl.testing.answers import AnswerWith, Said, say
from zephyrctl.testing.bulk import Bulk, BulkPlan, check_row_mode, json_wire
from zephyrctl.testing.bulk_desk import BulkDesk
from zephyrctl.testing.command import read_options, watch
from zephyrctl.testing.documents import Api, document
from zephyrctl.testing.replies import BILLED, check_mode, failure, refused, wire
from zephyrctl.testing.scripts import Progress, Script, known_modes
from zephyrctl.testing.serving import Incoming, Outgoing, Server, Wire

SLOW_SECONDS = 0.2
FAST_ANSWER = Said(("This is the answer to everything that is asked here.",), Tokens(50, 10))
_APIS: Mapping[str, Api] = {
    "/chat/completions": "openai",
    "/responses": "responses",
    "/messages": "anthropic",
}
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')


class LoopbackTeacher:
    """A server for tests and tutorials; answers are the sandbox teacher's, equal for equal bodies.

    It serves Chat Completions, Responses and Messages under any prefix, batches of both vendors, `/v1/models`,
    and for people and other processes `/health` and `/stats`.

    `script` says how calls are treated; `replies.MODES` lists the modes (ok, slow, 429, 503, drop, …). A status may
    carry a form of Retry-After: `429:int`, float, date, ms, negative, huge, absent, or a value as in `429:900`.
    `headers` are added to replies that report a failure; `latency` is seconds before each reply.

    `answer` says the text instead of the sandbox; with `varied` equal bodies get further draws when the temperature
    is above 0. `fast` gives one constant answer without reading the body (only bytes are counted, `billed` has one
    entry); `record_bodies` False keeps hashes in place of bodies.

    More than `max_in_flight` calls at a time, or more than `rpm` a minute (counted second by second), get 429 at
    once. `accepts` maps a parameter to the values it may have, none for a parameter that is refused: others get 400.
    `models` names the models served: others get 404. `slow_share` (0.01, 30.0) lets that share of bodies take that
    many times the latency. With `price` the bill is also in money.

    `batch_modes` says what comes of the rows of a batch (`bulk.ROW_MODES` beside the modes of calls); for the other
    settings of batches see `bulk.BulkPlan`.
    """

    def __init__(
        self,
        *,
        script: Script = "ok",
        latency: float = 0.0,
        headers: Mapping[str, str] | None = None,
        port: int = 0,
        answer: AnswerWith | None = None,
        varied: bool = False,
        fast: bool = False,
        record_bodies: bool = True,
        max_in_flight: int | None = None,
        rpm: float | None = None,
        accepts: Mapping[str, Collection[object]] | None = None,
        models: Collection[str] | None = None,
        slow_share: tuple[float, float] | None = None,
        price: Price | None = None,
        batch_modes: Script = "ok",
        batch_polls: int = 1,
        batch_outcomes: Sequence[str] = (),
        batch_shuffled: bool = True,
        batch_max_bytes: int | None = None,
        batch_faults: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        for mode in known_modes(script):
            check_mode(mode)
        for mode in known_modes(batch_modes):
            check_row_mode(mode)
        self.script = script
        self.latency = latency
        self.headers = dict(headers or {})
        self.port = port
        self.answer = answer
        self.varied = varied
        self.fast = fast
        self.record_bodies = record_bodies
        self.max_in_flight = max_in_flight
        self.accepts = dict(accepts or {})
        self.models = models
        self.slow_share = slow_share
        self.price = price
        self.batch_modes = batch_modes
        self.requests = 0
        """Calls to a model, those rejected and refused included; requests about batches are in `others`."""
        self.rejected = 0
        """Calls beyond `max_in_flight` or `rpm`."""
        self.refused: Counter[str] = Counter()
        """Calls refused for a parameter or a model, by its name."""
        self.billed: Counter[str] = Counter()
        """Billed calls and rows of batches by request body (canonical JSON)."""
        self.billed_by_key: Counter[str] = Counter()
        self.billed_uusd = 0
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.others: Counter[str] = Counter()
        """Requests that ask no model, by method and path."""
        self._calls, self._rows = Progress(), Progress()
        self._allowance = Allowance(rpm) if rpm is not None else None
        self._ready: dict[tuple[str, str, bytes], bytes] = {}
        plan = BulkPlan(batch_polls, batch_outcomes, batch_shuffled, batch_max_bytes, batch_faults or {})
        self._desk = BulkDesk(plan, choose=self._row_mode, work=self._work)
        self._server: Server | None = None

    def __enter__(self) -> LoopbackTeacher:
        self._server = Server(self._handle, port=self.port)
        self.port = self._server.port
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            if server.failure is not None and kind is None:
                raise server.failure

    @property
    def url(self) -> str:
        """The server's address, as ANTHROPIC_BASE_URL wants it. After leaving and entering again it is the same."""
        if not self.port:
            raise RuntimeError("the loopback teacher is not running; use it in a with statement")
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        """The address for OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    @property
    def billed_calls(self) -> int:
        """Calls, and rows of batches, for which the model did its work."""
        return sum(self.billed.values())

    @property
    def billed_usd(self) -> float:
        """What `price` makes of the tokens of all billed calls, in US dollars."""
        return self.billed_uusd / UUSD

    @property
    def batches(self) -> list[Bulk]:
        """The batches handed in so far."""
        return self._desk.batches

    def stats(self) -> dict[str, Any]:
        """The counts as a JSON document; bodies and keys are named by the first 16 digits of their SHA-256."""
        name = _digest if self.record_bodies else str
        return {
            "requests": self.requests,
            "billed": self.billed_calls,
            "billed_usd": self.billed_usd,
            "rejected": self.rejected,
            "refused": dict(self.refused),
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "batches": len(self.batches),
            "others": dict(self.others),
            "billed_by_key": {_digest(key): times for key, times in list(self.billed_by_key.items())},
            "billed_by_body": {name(body): times for body, times in list(self.billed.items())},
        }

    def mode_for(self, body: dict[str, Any], key: str = "") -> str:
        """Count a request and say how it is treated."""
        self.requests += 1
        if self.record_bodies:
            self.bodies.append(body)
        identity = self._identity(body)
        mode = self._calls.next_mode(self.script, identity, body)
        if _name(mode) in BILLED:
            self._bill(identity, key)
        return mode

    def _bill(self, identity: str, key: str) -> None:
        self.billed[identity] += 1
        self.billed_by_key[key] += 1

    def _identity(self, body: Mapping[str, Any]) -> str:
        text = json.dumps(body, sort_keys=True)
        return text if self.record_bodies else _digest(text)

    def _handle(self, incoming: Incoming) -> Outgoing:
        api = _api(incoming.path) if incoming.method == "POST" else None
        if api is not None:
            return self._ask(incoming, api)
        self.others[f"{incoming.method} {incoming.path}"] += 1
        reply = self._desk.answer(incoming, key=_key(incoming), headers=self.headers)
        return Outgoing(self._tell(incoming)) if reply is None else Outgoing(reply, self.latency)

    def _ask(self, incoming: Incoming, api: Api) -> Outgoing:
        """One call to a model: rejected, refused, or treated as the script says."""
        if not self._let_in():
            self.requests += 1
            self.rejected += 1
            return Outgoing(
                failure(429, api, message="too many requests", headers=self._with_rate(api, self.headers))
            )
        if self.fast:
            reply, mode = self._constant(incoming, api)
        else:
            try:
                body = json.loads(incoming.body or b"{}")
            except ValueError:
                body = None
            if not isinstance(body, dict):
                return Outgoing(failure(400, api, message="the body is not a JSON object"))
            refusal = self._refusal(api, body)
            if refusal is not None:
                return Outgoing(refusal)
            mode = self.mode_for(body, _key(incoming))
            reply = self._reply(mode, api, body, _key(incoming))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return Outgoing(reply, self._delay(mode, incoming.body), self._leave)

    def _leave(self) -> None:
        self.in_flight -= 1

    def _let_in(self) -> bool:
        """Whether the limits allow another call now; one that is let in counts towards `rpm`."""
        if self.max_in_flight is not None and self.in_flight >= self.max_in_flight:
            return False
        return self._allowance is None or self._allowance.take()

    def _with_rate(self, api: Api, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers, after those that tell how much of `rpm` is left."""
        return {**(self._allowance.headers(api) if self._allowance else {}), **headers}

    def _refusal(self, api: Api, body: dict[str, Any]) -> Wire | None:
        """The reply to a request for a model or with a parameter that is not taken, None where all is well."""
        model = str(body.get("model"))
        if self.models is not None and model not in self.models:
            name, reply = "model", failure(404, api, model=model)
        else:
            wrong = (n for n, values in self.accepts.items() if n in body and body[n] not in tuple(values))
            name = next(wrong, "")
            if not name:
                return None
            reply = refused(api, name, accepted=self.accepts[name])
        self.requests += 1
        self.refused[name] += 1
        if self.record_bodies:
            self.bodies.append(body)
        return reply

    def _reply(self, mode: str, api: Api, body: dict[str, Any], key: str) -> Wire:
        said = None
        if _name(mode) in BILLED:
            draw = self._calls.seen(self._identity(body)) - 1 if self.varied else 0
            said = say(mode, body, answer=self.answer, draw=draw)
            self._charge(said)
        reply = wire(mode, api, body, key=key, headers=self.headers, said=said)
        return (
            reply if self._allowance is None else replace(reply, headers=self._with_rate(api, reply.headers))
        )

    def _charge(self, said: Said, *, batch: bool = False) -> None:
        if self.price is not None:
            self.billed_uusd += self.price.cost(said.tokens, batch=batch)

    def _constant(self, incoming: Incoming, api: Api) -> tuple[Wire | bytes, str]:
        """The reply of `fast`: made once for each model and kept as bytes."""
        self.requests += 1
        mode = self._calls.next_mode(self.script, "", {})
        if _name(mode) in BILLED:
            self._bill("", _key(incoming))
            self._charge(FAST_ANSWER)
        found = _MODEL.search(incoming.body)
        place = (mode, api, found[1] if found else b"")
        reply = self._ready.get(place)
        if reply is None:
            body = {"model": place[2].decode()}
            made = wire(mode, api, body, key=_key(incoming), headers=self.headers, said=FAST_ANSWER)
            if mode != "ok":
                return made, mode
            reply = self._ready[place] = made.encode()
        return reply, mode

    def _delay(self, mode: str, body: bytes) -> float:
        """Seconds before the reply."""
        delay = max(self.latency, SLOW_SECONDS) if mode == "slow" else self.latency
        if self.slow_share is None:
            return delay
        share, factor = self.slow_share
        place = int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big") / 2**64
        return delay * factor if place < share else delay

    def _row_mode(self, body: Mapping[str, Any]) -> str:
        return self._rows.next_mode(self.batch_modes, self._identity(body), body)

    def _work(self, mode: str, api: Api, body: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Answer and bill one row of a batch."""
        said = say(mode, body, answer=self.answer)
        self._bill(self._identity(body), key)
        self._charge(said, batch=True)
        return document(mode, api, body, said)

    def _tell(self, incoming: Incoming) -> Wire:
        """What people and other processes ask."""
        what = incoming.path[incoming.path.rfind("/") :] if incoming.method == "GET" else ""
        if what == "/stats":
            return json_wire(self.stats())
        if what == "/health":
            return json_wire({"status": "ok"})
        if what == "/models":
            names = sorted(self.models if self.models is not None else ROLES)
            kind = "type" if "anthropic-version" in incoming.headers else "object"
            rows = [{"id": name, kind: "model", "created": 0, "owned_by": "loopback"} for name in names]
            return json_wire({"object": "list", "data": rows, "has_more": False})
        return failure(404, "openai", message="no such address")


def _api(path: str) -> Api | None:
    return next((api for ending, api in _APIS.items() if path.endswith(ending)), None)


def _key(incoming: Incoming) -> str:
    """The key that a caller shows, in either vendor's header."""
    return incoming.headers.get("x-api-key") or incoming.headers.get("authorization", "").removeprefix(
        "Bearer "
    )


def _name(mode: str) -> str:
    return mode.partition(":")[0]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; what `python -m zephyrctl.testing.teacher` does."""
    options = read_options(arguments)
    teacher = LoopbackTeacher(
        script=options.script or options.always,
        latency=options.latency,
        port=options.port,
        fast=options.fast,
        record_bodies=False,
        max_in_flight=options.max_in_flight,
        rpm=options.rpm,
        slow_share=options.slow_share,
        price=options.price,
        batch_polls=options.batch_polls,
    )
    with teacher:
        watch(teacher, port_file=options.port_file, stats_file=options.stats_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
