"""zephyrctl's caller with its ledger on disk, durable as always.

--task calls   every call is new
--task tail    the same, with the ideal makespan of these very calls for a server that is slow for some bodies
--task memory  waves of 5,000 calls, memory after each; then everything once more, from the ledger
--task retry   the same as calls: retries are the caller's own business
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

import aiohttp  # noqa: F401  as for the others, what has to be imported is not part of the time
import gauge
import httpx2  # noqa: F401

from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.modelspec import parse_model
from zephyrctl.project import EndpointSection, PriceSection, Project
from zephyrctl.providers.base import Answer, AnyProvider, Ask, Failure, Sampling
from zephyrctl.providers.calling.caller import Caller
from zephyrctl.providers.calling.settings import CallSettings
from zephyrctl.providers.hosted.provider import encoded
from zephyrctl.providers.registry import make_provider
from zephyrctl.providers.site import Site
from zephyrctl.records import Message

WAVE = 5_000
LATENCY, SLOW_SHARE, SLOWER = 0.1, 0.01, 30.0
"""What the server was started with for `--task tail`."""
ASKED = gauge.options()


def asks(calls: int, start: int = 0) -> list[Ask]:
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=512)
    return [Ask((Message(role="user", content=text),), sampling) for text in gauge.questions(calls, start)]


def mock() -> AnyProvider:
    price = PriceSection.model_validate({"in": 0.15, "out": 0.6})
    endpoint = EndpointSection(base_url=[ASKED.url], price=price)
    return make_provider(parse_model("bench:mock"), site=Site(project=Project(endpoints={"bench": endpoint})))


def ask_all(wanted: Sequence[Ask]) -> int:
    settings = CallSettings(concurrency=ASKED.concurrency)
    with (
        Ledger.open(ASKED.folder / "ledger.sqlite") as ledger,
        Caller(ledger, run=Run("bench"), settings=settings) as caller,
    ):
        return answered(caller.ask(mock(), wanted, task="bench"))


def answered(replies: Sequence[Answer | Failure]) -> int:
    return sum(isinstance(reply, Answer) and bool(reply.text) for reply in replies)


def ideal_seconds(wanted: Sequence[Ask]) -> float:
    """The makespan of these calls, in their order, for a client that costs nothing and always has
    `--concurrency` of them in flight."""
    provider = mock()
    free = [0.0] * ASKED.concurrency
    end = 0.0
    for ask in wanted:
        digest = hashlib.blake2b(encoded(provider.wire(ask)), digest_size=8).digest()
        slow = int.from_bytes(digest, "big") / 2**64 < SLOW_SHARE
        done = heapq.heappop(free) + LATENCY * (SLOWER if slow else 1.0)
        end = max(end, done)
        heapq.heappush(free, done)
    return end


def memory() -> dict[str, object]:
    """Memory after every wave of one caller, then the time that replaying all of it takes, wave by wave."""
    resident: list[float] = []

    def wave_by_wave(run: str) -> dict[str, float]:
        """Asks everything, as a stage does: what a wave brought is let go before the next."""
        settings = CallSettings(concurrency=ASKED.concurrency)
        total: Counter[str] = Counter()
        with (
            Ledger.open(ASKED.folder / "ledger.sqlite") as ledger,
            Caller(ledger, run=Run(run), settings=settings) as caller,
        ):
            provider = mock()
            for start in range(0, ASKED.calls, WAVE):
                wave = asks(WAVE, start)
                total.update(gauge.timed(lambda wave=wave: answered(caller.ask(provider, wave, task=run))))
                resident.append(round(gauge.resident(), 1))
        return dict(total)

    wave_by_wave("new")
    paid = resident.copy()
    return {"resident_mib": paid, "replay": wave_by_wave("again")}


def main() -> None:
    if ASKED.task == "memory":
        result = memory()
    else:
        wanted = asks(ASKED.calls)
        result = gauge.timed(lambda: ask_all(wanted))
        if ASKED.task == "tail":
            result["ideal"] = ideal_seconds(wanted)
    gauge.tell({**result, "version": version("zephyrctl")})


if __name__ == "__main__":
    main()
