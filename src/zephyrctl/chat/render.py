"""One rendering for training and generation: which tokens a dialogue becomes, and which of them bear loss.

The loss spans need no markers in the template. An assistant turn begins where the rendering of everything
before it, with the generation prompt, ends; it closes with the tokenizer's end-of-sequence token. Whatever
follows that token (a newline in Zephyr's template) is context for the next turn and bears no loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from zephyrctl.errors import UsageError
from zephyrctl.records import Message

_SYSTEM_MARK = "{#- default system turn -#}"


@cache
def zephyr_template() -> str:
    """The chat template used where a tokenizer has none: Zephyr's, one `<|role|>` line, the text, `</s>` and
    a newline."""
    return resources.files("zephyrctl.chat").joinpath("templates/zephyr.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Rendered:
    """A rendered dialogue. `loss_mask[i]` says whether predicting `input_ids[i]` is trained."""

    text: str
    input_ids: list[int]
    loss_mask: list[bool]
    resegmented: bool = False
    """True where whole-text tokens would have straddled the start of an answer, so the answer was tokenised
    on its own."""
    labels: list[int] = field(init=False, repr=False)
    """`input_ids` with -100 wherever no loss is borne."""

    def __post_init__(self) -> None:
        pairs = zip(self.input_ids, self.loss_mask, strict=True)
        object.__setattr__(self, "labels", [token if bears else -100 for token, bears in pairs])


def with_system_default(template: str, system: str | None) -> str:
    """`template`, giving dialogues without a system turn the turn `system`; None leaves them without.
    Applying it again replaces the earlier default, so a template never grows."""
    if _SYSTEM_MARK in template:
        template = template.split(_SYSTEM_MARK, 2)[2]
    if system is None:
        return template
    quoted = system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    default = f"[{{'role': 'system', 'content': '{quoted}'}}]"
    return (
        f"{_SYSTEM_MARK}{{%- if messages and messages[0]['role'] != 'system' -%}}"
        f"{{%- set messages = {default} + messages -%}}{{%- endif -%}}{_SYSTEM_MARK}{template}"
    )


def template_digest(tokenizer: Any) -> str:
    """`sha256:` and the hash of the tokenizer's chat template."""
    return "sha256:" + hashlib.sha256(str(tokenizer.chat_template or "").encode()).hexdigest()


def render_text(tokenizer: Any, messages: Sequence[Message], *, generate: bool = False) -> str:
    """The text the template makes of `messages`; with `generate`, the opening of an assistant turn follows.

    Raises UsageError with the template's own complaint where it refuses the messages.
    """
    import jinja2

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except (jinja2.TemplateError, ValueError) as error:
        raise UsageError(f"the chat template refuses this dialogue: {error}") from None
    return str(text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` and nothing else: no token is added at either end."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The token ids a model is given to answer `messages`, the opening of the assistant turn included."""
    return encode(tokenizer, render_text(tokenizer, messages, generate=True))


def render_dialogue(
    tokenizer: Any, messages: Sequence[Message], *, system_default: str | None = None
) -> Rendered:
    """The dialogue as token ids, with loss on every assistant text and on the end-of-sequence token that
    closes it.

    The ids of each prompt inside the dialogue equal `render_prompt` of the messages before the answer.
    Raises UsageError where the template rewrites earlier turns or does not close an assistant turn with the
    end-of-sequence token.
    """
    if system_default is not None and messages and messages[0].role != "system":
        messages = [Message(role="system", content=system_default), *messages]
    text = render_text(tokenizer, messages)
    spans = _answer_spans(tokenizer, messages, text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    mask = [any(a <= start and end <= b and end > start for a, b in spans) for start, end in offsets]
    if all(_aligned(tokenizer, text, ids, offsets, start) for start, _ in spans):
        return Rendered(text, ids, mask)
    return _by_segments(tokenizer, text, spans)


def _answer_spans(tokenizer: Any, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
    """Character spans of the assistant answers in `text`, each from its first character through its closing
    token."""
    spans = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = render_text(tokenizer, messages[:index], generate=True)
        until = render_text(tokenizer, messages[: index + 1])
        closing = until.rfind(tokenizer.eos_token, len(before))
        if closing < 0:
            raise UsageError(
                f"the chat template does not close an assistant turn with {tokenizer.eos_token!r}: the"
                " model would"
                " never learn to stop",
                hint="put the end-of-sequence token behind the assistant's text in chat_template.jinja",
            )
        if not text.startswith(before) or not text.startswith(until[: closing + len(tokenizer.eos_token)]):
            raise UsageError(
                "the chat template renders earlier turns differently once later ones follow, so what is"
                " trained would"
                " differ from what is generated",
                hint="train on dialogues of one answer, or use a model whose template keeps its history",
            )
        spans.append((len(before), closing + len(tokenizer.eos_token)))
    return spans


def _aligned(
    tokenizer: Any, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], start: int
) -> bool:
    """Whether the tokens before character `start` are exactly those of the text before it on its own."""
    count = sum(1 for _, end in offsets if end <= start)
    return encode(tokenizer, text[:start]) == list(ids[:count])


def _by_segments(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
    """Prompts and answers tokenised apart, so that training sees the prompt's tokens as generation will."""
    ids: list[int] = []
    mask: list[bool] = []
    cursor = 0
    for start, end in spans:
        for piece, bears in ((text[cursor:start], False), (text[start:end], True)):
            new = encode(tokenizer, piece)
            ids += new
            mask += [bears] * len(new)
        cursor = end
    rest = encode(tokenizer, text[cursor:])
    return Rendered(text, ids + rest, mask + [False] * len(rest), resegmented=True)


@dataclass(frozen=True)
class RenderedPair:
    """One preference as token ids: a shared prompt and the two answers, each through its closing token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    resegmented: bool = False


def render_pair(
    tokenizer: Any,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
) -> RenderedPair:
    """The ids of prompt and of both answers; turns that the two sides share before their last answer join
    the prompt.

    Raises UsageError where the sides differ in more than their last assistant message.
    """
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise UsageError("the two sides differ in more than their last answer")
    shared = [*prompt, *chosen[:-1]]
    prompt_ids = render_prompt(tokenizer, shared)
    sides, resegmented = [], False
    for message in (chosen[-1], rejected[-1]):
        rendered = render_dialogue(tokenizer, [*shared, message])
        size = len(prompt_ids)
        if rendered.input_ids[:size] != prompt_ids:
            raise UsageError("the prompt's tokens change with the answer that follows it")
        answer = [
            token
            for token, bears in zip(rendered.input_ids[size:], rendered.loss_mask[size:], strict=True)
            if bears
        ]
        sides.append(answer)
        resegmented = resegmented or rendered.resegmented
    return RenderedPair(prompt_ids, sides[0], sides[1], resegmented)


def special_tokens_in(tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    """Special tokens of the tokenizer that the messages spell out in their text (they would be read as the
    real ones)."""
    tokens: Mapping[str, Any] | Sequence[str] = tokenizer.all_special_tokens
    return sorted({token for token in tokens for m in messages if token and token in m.content})
