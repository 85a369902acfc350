"""The journal: what is written is what comes back, and reproducible numbers stay apart from speeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.training.journal import BEFORE, METRICS, TIMING, Journal

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)  # writes files
@given(losses=st.lists(NUMBERS, max_size=5), before=st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3))
def test_it_comes_back_bit_for_bit(
    losses: list[float], before: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    journal = Journal()
    for step, loss in enumerate(losses, 1):
        journal.metric({"step": step, "loss": loss})
        journal.time({"step": step, "seconds": 0.5})
    journal.before["scores"] = before
    folder = tmp_path_factory.mktemp("journal")
    journal.save(folder)
    again = Journal.load(folder)
    assert (again.metrics, again.timing, again.before) == (journal.metrics, journal.timing, journal.before)
    assert again.texts() == journal.texts()


def test_the_artifact_gets_metrics_and_timing_only(tmp_path: Path) -> None:
    journal = Journal()
    journal.before["samples"] = [{"answer": [1]}]
    assert set(journal.texts()) == {METRICS, TIMING}
    journal.save(tmp_path)
    (tmp_path / BEFORE).unlink()
    assert Journal.load(tmp_path).before == {}


def test_a_number_that_is_not_finite_is_never_written() -> None:
    journal = Journal()
    journal.metric({"step": 1, "loss": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.texts()


def test_looking_back() -> None:
    journal = Journal()
    for row in ({"step": 1, "loss": 2.0, "test/loss": 9.0}, {"step": 2, "loss": 1.0}):
        journal.metric(row)
    assert (journal.last("loss"), journal.last("test/loss"), journal.last("no")) == (1.0, 9.0, None)
    assert [row["step"] for row in journal.with_key("test/loss")] == [1]
