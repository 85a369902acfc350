"""What a training stage reads, as far as it is settled before any row is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.errors import RefNotFound
from zephyrctl.stages.sft.config import SftConfig
from zephyrctl.training.inputs import template_input

TURNS = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


@pytest.mark.parametrize("field", ["chat_template", "default_template"])
def test_a_template_from_a_file_is_an_input_by_its_content(field: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    config = SftConfig(**{field: str(path)})
    with pytest.raises(RefNotFound):
        template_input(config)
    path.write_text(TURNS)
    [one] = template_input(config)
    path.write_text(TURNS + "{{ eos_token }}")
    [two] = template_input(config)
    assert (one.role, one.ref, one.kind) == (field, str(path), "template")
    assert one.digest != two.digest


def test_a_template_that_ships_by_default_is_told_by_its_name() -> None:
    assert template_input(SftConfig()) == []
    assert [one.role for one in template_input(SftConfig(chat_template="zephyr"))] == ["chat_template"]
