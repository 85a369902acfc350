"""Lengths are those of the rendered dialogue, with the model's own template."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.asking.lengths import open_counter
from zephyrctl.chat.render import render_dialogue
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import RefNotFound
from zephyrctl.records import Message
from zephyrctl.training.locate import sandbox_base


def test_a_dialogue_is_as_long_as_training_sees_it(tmp_path: Path) -> None:
    count = open_counter(Store.open(tmp_path / "artifacts"), "sandbox")
    said = [Message(role="user", content="Sort these words: b a"), Message(role="assistant", content="a b")]
    assert count(said) == len(render_dialogue(load_tokenizer(sandbox_base()), said).input_ids)
    assert count.label == "sandbox"
    assert count.digest.startswith("sha256:")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound):
        open_counter(Store.open(tmp_path / "artifacts"), "./absent")
