"""Which requests go into one batch file, and what a batch is called.

Pure: one model to a file, no file beyond the provider's limits, the order kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from zephyrctl.providers.base import BatchLimits
from zephyrctl.providers.calling.job import Job

MARGIN = 0.95
"""The share of a provider's limits that is used: what counts as a byte there is theirs to say."""
_AROUND = 192
"""Bytes of a line around its body: custom_id, method, address, punctuation."""
_STAMP = "%Y%m%dT%H%M%SZ"

Place = tuple[str, str, str, str]
"""What all requests of one file share: provider, origin, endpoint, model."""


@dataclass(frozen=True)
class Plan:
    """`files` in the order to hand them in; `oversized` = too large for any file, to be asked one by one."""

    files: tuple[tuple[Job, ...], ...]
    oversized: tuple[Job, ...]


def place_of(job: Job) -> Place:
    """Where a request goes and to which model."""
    request = job.request
    return (request.provider, request.origin, request.endpoint, str(request.body.get("model", "")))


def by_place(jobs: Iterable[Job]) -> dict[Place, list[Job]]:
    """The jobs of each model, in order; a key that comes twice is kept once."""
    groups: dict[Place, dict[str, Job]] = {}
    for job in jobs:
        groups.setdefault(place_of(job), {}).setdefault(job.key, job)
    return {place: list(group.values()) for place, group in groups.items()}


def plan(jobs: Sequence[Job], limits: BatchLimits) -> Plan:
    """The jobs of one model as files within `limits`, with a margin."""
    most = max(1, int(limits.requests * MARGIN))
    room = int(limits.size * MARGIN)
    files: list[list[Job]] = []
    oversized: list[Job] = []
    used = 0
    for job in jobs:
        size = line_bytes(job.request.body)
        if size > room:
            oversized.append(job)
            continue
        if not files or len(files[-1]) >= most or used + size > room:
            files.append([])
            used = 0
        files[-1].append(job)
        used += size
    return Plan(tuple(map(tuple, files)), tuple(oversized))


def line_bytes(body: Mapping[str, Any]) -> int:
    """The most bytes that a request takes in a file of any provider: every letter beyond ASCII escaped."""
    return len(json.dumps(body)) + _AROUND


def halves(jobs: Sequence[Job]) -> tuple[Sequence[Job], Sequence[Job]]:
    """A file that is too much for the account's queue, in two parts; the second is empty for a single job."""
    middle = (len(jobs) + 1) // 2
    return jobs[:middle], jobs[middle:]


def new_batch_id(now: datetime, mark: str) -> str:
    """A name for a batch that tells when it was made, so that the provider's list is read no further back.

    `mark` keeps names made in one second apart.
    """
    return f"{now.astimezone(UTC).strftime(_STAMP)}-{mark}"


def not_before(batch: str, slack: timedelta = timedelta(hours=24)) -> datetime:
    """The earliest moment at which the provider can have made our batch; `slack` covers clocks that are wrong.

    The beginning of time for a name of another form.
    """
    try:
        made = datetime.strptime(batch.partition("-")[0], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return made - slack
