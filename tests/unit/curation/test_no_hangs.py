"""Text of models can be anything: no filter hangs on long runs of its own marks."""

from __future__ import annotations

import pytest

from zephyrctl.curation.cutoff import sign_of_cut
from zephyrctl.curation.phrases import Phrases
from zephyrctl.curation.truecase import Truecase
from zephyrctl.records import Message

RUNS = [
    "\\[", "\\(", "$$", "$ ", "`", "```", "~", "<a", "((", "[[", "a@", "\n", "\t", ".", "!", "- ", "1. ", "a.b.", "a-",
    "a'", "A=b ", "yes,", "i do not ", "as an ai ", "`x` word ", "don't ", "**", "_", ")",
]  # fmt: skip


@pytest.mark.timeout(60)  # quadratic work on these texts takes many minutes
@pytest.mark.parametrize("run", RUNS)
def test_long_runs_come_to_an_end(run: str) -> None:
    text = "Hello there. " + run * (100_000 // len(run)) + " x"
    assert Truecase().restore(text).lower() == text.lower()
    assert isinstance(sign_of_cut(text), str)
    for kind in ("persona", "refusals"):
        Phrases(kind).apply([Message(role="assistant", content=text)])
