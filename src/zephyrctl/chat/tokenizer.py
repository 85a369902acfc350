"""Opening a model folder's tokenizer the one way that training and generation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zephyrctl.chat.render import with_system_default, zephyr_template
from zephyrctl.errors import EnvironmentFault, MissingExtra


def load_tokenizer(folder: Path, *, system: str | None = None) -> Any:
    """The fast tokenizer of a local model folder, ready to render dialogues.

    A tokenizer without a chat template gets Zephyr's. `system` sets the system turn that dialogues without
    one are given (it becomes part of the template); None leaves the template as it is. Raises
    EnvironmentFault where the folder holds no usable tokenizer or one without an end-of-sequence token.
    """
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
    if not tokenizer.chat_template:
        tokenizer.chat_template = zephyr_template()
    if system is not None:
        tokenizer.chat_template = with_system_default(tokenizer.chat_template, system)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
