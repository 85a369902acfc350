"""Where requests about files and batches arrive at the loopback teacher, with the faults scripted for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl

from zephyrctl.testing.bulk import LOST_REPLY, Bulk, BulkPlan, BulkStore, ChooseMode, Work
from zephyrctl.testing.bulk_anthropic import AnthropicBatches
from zephyrctl.testing.bulk_openai import OpenAIBatches
from zephyrctl.testing.documents import Api
from zephyrctl.testing.replies import failure, wire
from zephyrctl.testing.serving import Incoming, Wire

_ADDRESS = re.compile(r".*?/(messages/batches|files|batches)(?:/([\w.-]+))?(?:/(content|cancel|results))?")


class BulkDesk:
    """Both vendors' batch endpoints over one store."""

    def __init__(self, plan: BulkPlan, *, choose: ChooseMode, work: Work) -> None:
        self._store = BulkStore(plan, choose=choose, work=work)
        self._openai = OpenAIBatches(self._store)
        self._anthropic = AnthropicBatches(self._store)

    @property
    def batches(self) -> list[Bulk]:
        """The batches handed in so far."""
        return self._store.batches

    def answer(self, incoming: Incoming, *, key: str, headers: Mapping[str, str]) -> Wire | None:
        """The reply, None where the request is about something else. `headers` go on scripted failures."""
        found = _ADDRESS.fullmatch(incoming.path)
        if found is None:
            return None
        thing, identity, tail = found.groups("")
        anthropic = thing == "messages/batches"
        api: Api = "anthropic" if anthropic else "openai"
        if anthropic:
            operation = self._anthropic.operation(incoming.method, identity, tail)
        else:
            operation = self._openai.operation(incoming.method, thing, identity, tail)
        if not operation:
            return failure(404, api, message="no such address")
        fault = self._store.fault(operation)
        spoilt = None if fault is None else wire(fault, api, {}, key=key, headers=headers)
        if spoilt is not None and fault not in LOST_REPLY:
            return spoilt
        desk = self._anthropic if anthropic else self._openai
        done = desk.answer(operation, identity, incoming, key, dict(parse_qsl(incoming.query)))
        if spoilt is None:
            return done
        return spoilt if spoilt.manner == "whole" else replace(done, manner=spoilt.manner)
