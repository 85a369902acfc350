"""Which requests go into one batch file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from bulk_office import Office, OfficeProvider, job_of, jobs_of
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.providers.base import BatchLimits
from zephyrctl.providers.calling.bulk_plan import (
    MARGIN,
    by_place,
    halves,
    line_bytes,
    new_batch_id,
    not_before,
    plan,
)
from zephyrctl.providers.hosted.openai_batch import request_line

TEXTS = st.lists(st.text(max_size=300), max_size=40)


@given(TEXTS, st.integers(1, 12), st.integers(400, 4000))
def test_every_job_is_in_one_file_in_order_and_no_file_is_beyond_the_limits(texts, requests, size):
    provider = OfficeProvider(Office())
    jobs = [job_of(provider, text) for text in dict.fromkeys(texts)]
    planned = plan(jobs, BatchLimits(requests, size))

    placed = [job.key for file in planned.files for job in file]
    oversized = {job.key for job in planned.oversized}
    assert placed == [job.key for job in jobs if job.key not in oversized]
    assert len(placed) + len(oversized) == len(jobs)
    for file in planned.files:
        assert 1 <= len(file) <= max(1, requests * MARGIN)
        written = [request_line(job.key, "/v1/chat/completions", job.request.body) for job in file]
        assert sum(map(len, written)) <= size * MARGIN
    for job in planned.oversized:
        assert line_bytes(job.request.body) > int(size * MARGIN)


@given(TEXTS, st.integers(400, 4000))
def test_no_file_could_have_taken_the_first_job_of_the_next_one(texts, size):
    provider = OfficeProvider(Office())
    jobs = [job_of(provider, text) for text in dict.fromkeys(texts)]
    files = plan(jobs, BatchLimits(1000, size)).files
    for file, after in pairwise(files):
        together = sum(line_bytes(job.request.body) for job in (*file, after[0]))
        assert together > int(size * MARGIN)


@given(st.text())
def test_a_line_is_never_longer_than_reckoned_for_either_vendor(text):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    entry = json.dumps({"custom_id": "f" * 64, "params": body}, ensure_ascii=False)
    assert len(request_line("f" * 64, "/v1/chat/completions", body)) <= line_bytes(body)
    assert len(entry.encode("utf-8", "surrogatepass")) <= line_bytes(body)


def test_one_model_to_a_group_and_a_repeated_key_once():
    office = Office()
    one, two = OfficeProvider(office, name="one"), OfficeProvider(office, name="two")
    jobs = [*jobs_of(one, 2), *jobs_of(two, 2), *jobs_of(one, 3)]
    groups = by_place(jobs)
    assert [place[3] for place in groups] == ["one", "two"]
    assert [len(group) for group in groups.values()] == [3, 2]
    assert len({job.key for group in groups.values() for job in group}) == 5


@pytest.mark.parametrize("number", [1, 2, 7])
def test_halves_lose_nothing_and_get_smaller(number):
    jobs = jobs_of(OfficeProvider(Office()), number)
    first, second = halves(jobs)
    assert [*first, *second] == jobs
    assert len(second) <= len(first) < max(2, number)


def test_the_name_of_a_batch_tells_how_far_back_to_look():
    now = datetime(2026, 11, 22, 19, 30, 5, tzinfo=UTC)
    name = new_batch_id(now, "abc123")
    assert not_before(name, timedelta(0)) == now
    assert not_before(name) == now - timedelta(days=1)
    assert not_before("of another form") == datetime.min.replace(tzinfo=UTC)
