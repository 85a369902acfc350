"""Which chat template is taken: one by name or file, the model's own, or the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zephyrctl.chat.render import render_text
from zephyrctl.chat.template import (
    shipped_templates,
    template_digest,
    template_source,
    with_bos,
    with_date,
    with_system_default,
    with_system_joined,
    zephyr_template,
)
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import EnvironmentFault, RefNotFound, UsageError
from zephyrctl.records import Message

OWN = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ eos_token }}{% endfor %}"
OTHER = "{% for m in messages %}{{ '[' ~ m['role'] ~ ']' ~ m['content'] ~ eos_token }}{% endfor %}"
HELLO = [Message(role="user", content="hello")]


def test_a_name_that_ships_and_a_file(tmp_path: Path, tiny: Path) -> None:
    assert "zephyr" in shipped_templates()
    template, digest = template_source("zephyr")
    assert template == zephyr_template()
    assert digest == template_digest(load_tokenizer(tiny))
    path = tmp_path / "own.jinja"
    path.write_text(OWN, encoding="utf-8")
    assert template_source(str(path))[0] == OWN
    assert template_source(str(path))[1] != digest


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no chat template of the name 'zefyr'") as info:
        template_source("zefyr")
    assert "zephyr" in str(info.value.hint)
    with pytest.raises(RefNotFound):
        template_source(str(tmp_path / "none.jinja"))
    with pytest.raises(RefNotFound):
        template_source(str(Path(__file__) / "none.jinja"))
    broken = tmp_path / "broken.jinja"
    broken.write_text("hello\n{% for m in messages %}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"broken\.jinja, line 2: not a chat template"):
        template_source(str(broken))
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        template_source(str(broken))
    marked = tmp_path / "marked.jinja"
    marked.write_text("{% generation %}{{ eos_token }}{%- endgeneration -%}", encoding="utf-8")
    assert template_source(str(marked))[0].startswith("{% generation")


def test_whose_template_is_taken(tokenizer_folder: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    other.write_text(OTHER, encoding="utf-8")
    bare = tokenizer_folder("mistral")
    assert render_text(load_tokenizer(bare), HELLO) == "<|user|>\nhello</s>\n"
    assert render_text(load_tokenizer(bare, default_template=str(other)), HELLO) == "[user]hello</s>"
    chat = tokenizer_folder("mistral", OWN)
    assert render_text(load_tokenizer(chat), HELLO) == "user: hello</s>"
    assert render_text(load_tokenizer(chat, default_template=str(other)), HELLO) == "user: hello</s>"
    assert render_text(load_tokenizer(chat, template=str(other)), HELLO) == "[user]hello</s>"
    assert render_text(load_tokenizer(chat, template="zephyr"), HELLO) == "<|user|>\nhello</s>\n"
    with pytest.raises(UsageError, match="no chat template"):
        load_tokenizer(chat, template="no-such")


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match="no such model folder"):
        load_tokenizer(tmp_path / "none")


def test_of_several_templates_the_default_one_is_taken(tokenizer_folder: Any) -> None:
    several = [{"name": "tool_use", "template": OTHER}, {"name": "default", "template": OWN}]
    assert render_text(load_tokenizer(tokenizer_folder("mistral", several)), HELLO) == "user: hello</s>"
    folder = tokenizer_folder("mistral", several[:1])
    with pytest.raises(EnvironmentFault, match="none is called 'default'"):
        load_tokenizer(folder)
    assert render_text(load_tokenizer(folder, template="zephyr"), HELLO) == "<|user|>\nhello</s>\n"


def test_pins_stand_side_by_side_and_replace_each_other() -> None:
    dated = "{{ strftime_now('%Y') }}" + OWN
    first = with_system_default(with_bos(with_system_joined(with_date(dated, "2020-01-01")), True), "a")
    second = with_system_default(with_bos(with_system_joined(with_date(first, "2021-01-01")), True), "b")
    assert len(second) == len(first)
    assert with_date(with_bos(second, True), "2021-01-01") == second, "the same pins, the same text"
    assert with_system_default(second, None).endswith(dated)
    assert "2020" not in second
    assert with_date(second, None) == second
    assert with_date(OWN, "2021-01-01") == OWN
