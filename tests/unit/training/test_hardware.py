"""Hardware is looked at or described; everything else decides from the description."""

from __future__ import annotations

import pytest

from zephyrctl.errors import UsageError
from zephyrctl.training.hardware import GIB, Hardware, parse_hardware, this_machine


@pytest.mark.parametrize(
    ("text", "count", "memory"),
    [
        ("16xA100-80GB", 16, 80 * 10**9),
        ("8 x H100", 8, 80 * 10**9),
        ("1x24GB", 1, 24 * 10**9),
        ("H200", 1, 141 * 10**9),
        ("2xL40S", 2, 48 * 10**9),
        ("4x24GiB", 4, 24 * GIB),
        ("1xRTX 4090", 1, 24 * 10**9),
        ("2xRTX4090", 2, 24 * 10**9),
    ],
)
def test_hardware_from_words(text: str, count: int, memory: int) -> None:
    found = parse_hardware(text)
    assert (len(found.gpus), found.gpu_memory, found.described) == (count, memory, True)


@pytest.mark.parametrize(
    "text", ["", "8x", "0xH100", "999999999xH100", "many GPUs", "8xFastChip", "2xA4000", "1xA1000"]
)
def test_words_that_name_no_hardware(text: str) -> None:
    with pytest.raises(UsageError, match="does not say which GPUs"):
        parse_hardware(text)


def test_this_machine_is_said_in_one_line() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory is None or machine.memory > 0
    assert not machine.described
    assert Hardware((), 3 * GIB, 2).summary == "CPU, 2 cores, 3 GiB free"
    assert parse_hardware("8xA100-80GiB").summary == "8 x A100-80GiB (80 GiB)"
