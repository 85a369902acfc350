"""Opening a model folder's tokenizer the one way that training and generation share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zephyrctl.chat.render import closing_ids, render_text
from zephyrctl.chat.template import (
    template_source,
    with_bos,
    with_date,
    with_system_default,
    with_system_joined,
)
from zephyrctl.errors import EnvironmentFault, MissingExtra, RefNotFound, UsageError
from zephyrctl.records import Message

_PROBE = "text of a system turn"


def load_tokenizer(
    folder: Path,
    *,
    template: str | None = None,
    default_template: str = "zephyr",
    system: str | None = None,
    date: str | None = None,
    bos: bool | None = None,
) -> Any:
    """The fast tokenizer of a local model folder, ready to render dialogues.

    Its chat template is `template` (a name that ships, or a .jinja file) where given, else its own, else
    `default_template`. What is decided beyond that is pinned in the template, so that whoever loads the saved tokenizer
    renders the same: `system`, the system turn that dialogues without one are given (None leaves the template as it
    is); `date`, the day (YYYY-MM-DD) that a template which asks for today's is told (None: the day pinned before, else
    2024-07-26; no rendering depends on the clock); `bos`, a beginning-of-sequence token in front where the template
    gives none (False takes away one pinned before, None leaves it). A template without a system role gets system text
    as the first paragraph of the first user turn.

    Raises RefNotFound where there is no such folder, EnvironmentFault where it holds no usable tokenizer or one without
    an end-of-sequence token, UsageError or RefNotFound for a template that cannot be had, UsageError for `bos` without
    such a token.
    """
    tokenizer = _open(folder)
    _set_template(tokenizer, folder, template, default_template)
    tokenizer.chat_template = with_date(tokenizer.chat_template, date)
    if bos is not None:
        _begin(tokenizer, folder, bos)
    if not _has_system_role(tokenizer):
        tokenizer.chat_template = with_system_joined(tokenizer.chat_template)
    if system is not None:
        tokenizer.chat_template = with_system_default(tokenizer.chat_template, system)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_ids(tokenizer: Any, named: int | Sequence[int] | None = None) -> list[int]:
    """The token ids at which an answer ends, in a fixed order: the tokenizer's end-of-sequence token; `named`, those of
    a model's generation settings (Llama 3 and Gemma have several); those with which the chat template closes an
    assistant turn.

    A saved model needs them all in its generation settings, or it runs on behind its answers. Raises UsageError where
    the template does not close an assistant turn.
    """
    known = [named] if isinstance(named, int) else list(named or ())
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *known, *closing_ids(tokenizer)]))


def _open(folder: Path) -> Any:
    if not folder.is_dir():
        raise RefNotFound(f"no such model folder: {folder}")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "train") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(
            f"{folder}: no usable tokenizer ({_first_line(error)})",
            hint="a model folder needs tokenizer.json and tokenizer_config.json beside its weights",
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise EnvironmentFault(f"{folder}: needs a fast tokenizer (tokenizer.json)")
    if tokenizer.eos_token is None:
        raise EnvironmentFault(f"{folder}: the tokenizer has no end-of-sequence token")
    return tokenizer


def _set_template(tokenizer: Any, folder: Path, template: str | None, default_template: str) -> None:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        # some folders name several templates; the one for plain talk is called default
        own = own.get("default")
        if own is None and template is None:
            raise EnvironmentFault(
                f"{folder}: has several chat templates and none is called 'default'",
                hint="--chat-template FILE",
            )
    if template is not None or not own:
        own = template_source(template or default_template)[0]
    tokenizer.chat_template = own


def _begin(tokenizer: Any, folder: Path, wanted: bool) -> None:
    """Sees to it that the template begins with the token, or that no earlier stage has put one there."""
    if wanted and tokenizer.bos_token is None:
        raise UsageError(
            f"{folder}: `bos` is set, and the tokenizer has no beginning-of-sequence token",
            hint="--set bos=false",
        )
    pinned = tokenizer.chat_template
    tokenizer.chat_template = bare = with_bos(pinned, False)
    begun = wanted and render_text(tokenizer, [Message(role="user", content="x")]).startswith(
        tokenizer.bos_token
    )
    if wanted and not begun:
        # One that is pinned stays where it is, so that the template is the same to the letter.
        tokenizer.chat_template = with_bos(bare, True) if pinned == bare else pinned


def _has_system_role(tokenizer: Any) -> bool:
    """Whether the template takes a system turn and shows its text, where it takes a user turn at all."""
    user = Message(role="user", content="x")
    try:
        render_text(tokenizer, [user])
    except UsageError:
        return True
    try:
        return _PROBE in render_text(tokenizer, [Message(role="system", content=_PROBE), user])
    except UsageError:
        return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
