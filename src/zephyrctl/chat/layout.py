"""A dialogue as text, and where in it the answers stand: found by rendering, with no marks in the template.

An answer begins where the rendering of everything before it, with the opening of an assistant turn, ends. It
closes with the first special token that the template puts behind the answer's text, learned from two small
dialogues around a word that is looked for. Each answer is checked by a round trip: the dialogue must begin with
exactly the text that a model would be given to answer, and go on with exactly what the template makes of the answer.

Some templates cannot pass that check for every answer, because they rewrite turns once later ones follow (Qwen3
drops the thinking block of earlier answers). There training cannot equal generation; such an answer bears no loss
and is counted (`Layout.rewritten`). A dialogue whose last answer fails is refused, so that no text is trained which
could never be generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.errors import UsageError
from zephyrctl.records import Message

_WORD = "Answer0word"


def render_text(tokenizer: Any, messages: Sequence[Message], *, generate: bool = False) -> str:
    """The text the template makes of `messages`; with `generate`, the opening of an assistant turn follows.

    The template runs in transformers' immutable sandbox. Raises UsageError with the template's own complaint where it
    refuses the messages.
    """
    import jinja2

    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except (
        jinja2.TemplateError,
        ValueError,
        TypeError,
        ArithmeticError,
        RecursionError,
        MemoryError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"the chat template refuses this dialogue: {reason}") from None
    return str(text)


@dataclass(frozen=True)
class Ends:
    """What a template puts behind an answer's text."""

    tail: str
    """Behind the last answer of a dialogue, to the end of the text."""
    last: str
    """The part of `tail` through its first special token."""
    middle: str | None
    """Through the first special token, where another turn follows; None where the template drops such an answer."""


def find_ends(tokenizer: Any) -> Ends:
    """How the tokenizer's template closes an answer, last in its dialogue or not.

    Raises UsageError where no special token closes the last answer: a model trained so would never stop.
    """
    question, answer = Message(role="user", content="q"), Message(role="assistant", content=_WORD)
    tail = _behind_word(render_text(tokenizer, [question, answer]))
    last = None if tail is None else _through_special(tokenizer, tail)
    if tail is None or last is None:
        raise UsageError(
            f"the chat template closes an assistant turn with no special token (such as {tokenizer.eos_token!r}): the"
            " model would never learn to stop",
            hint="put the end-of-sequence token behind the assistant's text in the chat template",
        )
    following = _behind_word(render_text(tokenizer, [question, answer, question]))
    return Ends(tail, last, None if following is None else _through_special(tokenizer, following))


def closing_ids(tokenizer: Any) -> list[int]:
    """Ids of the special tokens with which the template closes an answer: the last of a dialogue first."""
    ends = find_ends(tokenizer)
    spelled = [ends.last] + ([ends.middle] if ends.middle else [])
    return list(dict.fromkeys(int(tokenizer.encode(one, add_special_tokens=False)[-1]) for one in spelled))


def _behind_word(text: str) -> str | None:
    _, found, behind = text.rpartition(_WORD)
    return behind if found else None


def _through_special(tokenizer: Any, text: str) -> str | None:
    places = [
        (at, -len(token.content))
        for token in tokenizer.added_tokens_decoder.values()
        if (at := text.find(token.content)) >= 0
    ]
    if not places:
        return None
    at, minus_length = min(places)
    return text[: at - minus_length]


@dataclass(frozen=True)
class Span:
    """One answer in a text, in characters: its text begins at `start`, what closes it (to the end of the closing token)
    stands at `body` to `end`."""

    start: int
    body: int
    end: int


@dataclass(frozen=True)
class Layout:
    """A rendered dialogue as text, the answers that can bear loss, and how many cannot, as the template rewrites
    them."""

    text: str
    spans: list[Span]
    rewritten: int = 0


def lay_out(tokenizer: Any, messages: Sequence[Message], ends: Ends) -> Layout:
    """The text of `messages` and its answers.

    Raises UsageError where the template refuses the dialogue, or does not render its last answer behind the prompt that
    a model would be given.
    """
    text = render_text(tokenizer, messages)
    spans, rewritten = [], 0
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index in answers:
        span = _span(tokenizer, messages, index, text, ends)
        if span is not None:
            spans.append(span)
        elif index == answers[-1]:
            raise _unlike_generation(tokenizer, messages, index, text)
        else:
            rewritten += 1
    return Layout(text, spans, rewritten)


def lay_out_answer(tokenizer: Any, messages: Sequence[Message], ends: Ends, *, with_header: bool) -> Layout:
    """The text of `messages`, whose last turn is an answer, with that answer alone as a span; `with_header`: the span
    begins with the opening of the assistant turn. Raises UsageError as `lay_out` does."""
    text = render_text(tokenizer, messages)
    span = _span(tokenizer, messages, len(messages) - 1, text, ends)
    if span is None:
        raise _unlike_generation(tokenizer, messages, len(messages) - 1, text)
    if not with_header:
        return Layout(text, [span])
    before = render_text(tokenizer, messages[:-1])
    if not text.startswith(before) or len(before) > span.start:
        raise UsageError("the chat template gives the opening of an assistant turn no place of its own")
    return Layout(text, [Span(len(before), span.body, span.end)])


def _span(tokenizer: Any, messages: Sequence[Message], index: int, text: str, ends: Ends) -> Span | None:
    """The answer `messages[index]` in `text`; None where it does not stand there as it would be generated."""
    is_last = index == len(messages) - 1
    until = text if is_last else render_text(tokenizer, messages[: index + 1])
    before = render_text(tokenizer, messages[:index], generate=True)
    close = ends.last if is_last else ends.middle
    body = len(until) - len(ends.tail)
    whole = until.endswith(ends.tail) and close is not None and body >= len(before)
    if not whole or not text.startswith(before) or not text.startswith(until[:body]):
        return None
    return Span(len(before), body, body + len(close or "")) if text.startswith(close or "", body) else None


def _unlike_generation(tokenizer: Any, messages: Sequence[Message], index: int, text: str) -> UsageError:
    """Why the answer `messages[index]` does not stand in `text` as it would be generated."""
    if index == len(messages) - 1 and text.startswith(render_text(tokenizer, messages[:index])):
        return UsageError(
            "the chat template opens an answer differently for generation than in a dialogue (it may begin the model's"
            " thinking), so what is trained would differ from what is generated",
            hint="--chat-template with one that opens both alike (many do behind {%- set enable_thinking = false -%}),"
            " or answers that hold their thinking",
        )
    return UsageError(
        "the chat template renders earlier turns differently once later ones follow, so what is trained would differ"
        " from what is generated",
        hint="train on dialogues of one answer, or use a model whose template keeps its history",
    )
