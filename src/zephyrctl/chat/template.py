"""Chat templates as text: those that ship, those a user names, and what is pinned in front of one.

A pin is a short piece of template between two marks at the front of a model's own template, so that what training
decided (a system turn for dialogues without one, a day, a beginning-of-sequence token) is part of the saved template
and every engine that reads it renders the same. Pinning again replaces the earlier pin; the template never grows.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, RefNotFound, UsageError

NO_DATE = "2024-07-26"
"""The day given to a template that asks for today's, where none is set: the one that Llama 3.1 and 3.2 name
themselves."""

_ASKS_DATE = re.compile(r"strftime_now\s*\(")
_DATE_FORM = re.compile(r"""strftime_now\s*\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")


@cache
def zephyr_template() -> str:
    """The chat template used where a tokenizer has none: Zephyr's, one `<|role|>` line, the text, `</s>` and
    a newline."""
    return resources.files("zephyrctl.chat").joinpath("templates/zephyr.jinja").read_text(encoding="utf-8")


def shipped_templates() -> list[str]:
    """The names that `template_source` knows without a file."""
    folder = resources.files("zephyrctl.chat").joinpath("templates")
    return sorted(one.name.removesuffix(".jinja") for one in folder.iterdir() if one.name.endswith(".jinja"))


def template_source(text: str) -> tuple[str, str]:
    """(template, digest) of a name that ships or the path of a .jinja file.

    Raises UsageError for an unknown name or a file that is no Jinja template, RefNotFound for a file that is not there,
    EnvironmentFault for one that may not be read.
    """
    if text in shipped_templates():
        source = (
            resources.files("zephyrctl.chat").joinpath(f"templates/{text}.jinja").read_text(encoding="utf-8")
        )
        return source, digest_of_template(source)
    path = Path(text).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        names = ", ".join(shipped_templates())
        raise UsageError(
            f"no chat template of the name {text!r} ships with zephyrctl",
            hint=f"one of {names}, or the path of a .jinja file",
        )
    try:
        source = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RefNotFound(f"{text}: no such chat template file") from None
    except OSError as error:
        raise EnvironmentFault(f"{text}: the chat template cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{text}: the chat template is not UTF-8 ({error.reason})") from None
    _check_syntax(source, text)
    return source, digest_of_template(source)


def _check_syntax(source: str, where: str) -> None:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", source)
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        environment.parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{where}, line {error.lineno}: not a chat template: {error.message}") from None


def digest_of_template(template: str) -> str:
    """`sha256:` and the hash of a template's text."""
    return "sha256:" + hashlib.sha256(template.encode()).hexdigest()


def template_digest(tokenizer: Any) -> str:
    """`sha256:` and the hash of the tokenizer's chat template."""
    return digest_of_template(str(tokenizer.chat_template or ""))


def with_system_default(template: str, system: str | None) -> str:
    """`template`, giving dialogues without a system turn the turn `system`; None leaves them without.
    Applying it again replaces the earlier default, so a template never grows."""
    if system is None:
        return _pinned(template, "default system turn", None)
    default = f"[{{'role': 'system', 'content': {_quoted(system)}}}]"
    return _pinned(
        template,
        "default system turn",
        "{%- if messages and messages[0]['role'] != 'system' -%}"
        f"{{%- set messages = {default} + messages -%}}{{%- endif -%}}",
    )


def with_system_joined(template: str) -> str:
    """`template`, given a system turn as the first paragraph of the first user turn (as Gemma 3's own template does);
    for templates without a system role. A system turn that no user turn follows still meets the template's refusal."""
    return _pinned(
        template,
        "system turn joins the first user turn",
        "{%- if messages[1:] and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}"
        "{%- set joined = (messages[0]['content'], messages[1]['content']) | select | join('\\n\\n') -%}"
        "{%- set messages = [{'role': 'user', 'content': joined}] + messages[2:] -%}"
        "{%- endif -%}",
    )


def with_bos(template: str, wanted: bool) -> str:
    """`template` behind the tokenizer's beginning-of-sequence token; or without one that was put there so."""
    return _pinned(template, "beginning-of-sequence token", "{{- bos_token -}}" if wanted else None)


def with_date(template: str, date: str | None) -> str:
    """`template` with the day it states, where it states one: `date` (YYYY-MM-DD); None keeps a day that is already
    pinned, and pins `NO_DATE` in a template that would ask for today's.

    Raises UsageError for a malformed date and for a template that asks for the day in a form that cannot be read off
    its text.
    """
    name = "pinned date"
    bare = _pinned(template, name, None)
    if date is None and (bare != template or not _ASKS_DATE.search(bare)):
        return template
    day = _day(date or NO_DATE)
    forms = {single or double for single, double in _DATE_FORM.findall(bare)}
    if len(_DATE_FORM.findall(bare)) != len(_ASKS_DATE.findall(bare)):
        raise UsageError(
            "the chat template asks for today's date in a form made while it renders: the day cannot be pinned",
            hint="--chat-template FILE with the date written out",
        )
    pin = ""
    if forms:
        spelled = ", ".join(f"{_quoted(form)}: {_quoted(day.strftime(form))}" for form in sorted(forms))
        pin += f"{{%- macro strftime_now(form) -%}}{{{{- {{{spelled}}}[form] -}}}}{{%- endmacro -%}}"
    if "date_string" in bare:
        pin += f"{{%- set date_string = {_quoted(day.strftime('%d %b %Y'))} -%}}"
    return _pinned(bare, name, pin) if pin else bare


def _day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"template_date {text!r} is not a day (YYYY-MM-DD)") from None


def _quoted(text: str) -> str:
    inner = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{inner}'"


def _pinned(template: str, name: str, pin: str | None) -> str:
    """`template` with `pin` between two marks called `name`: in front, or in the place of an earlier one, so that the
    same pins make the same text; None removes it."""
    mark = f"{{#- {name} -#}}"
    new = "" if pin is None else f"{mark}{pin}{mark}"
    if mark not in template:
        return new + template
    before, _, after = template.split(mark, 2)
    return before + new + after
