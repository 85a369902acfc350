"""Laid-out dialogues as token ids, many at a time, with the answers' places among the tokens.

Special tokens cut a text into pieces that a tokenizer treats each on its own. So whether a prompt's tokens are the same
with an answer behind them as without is decided on the piece between the last special token before the answer and the
answer itself (in practice the header of the assistant turn), and not by tokenising every prompt again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.chat.layout import Layout


@dataclass(frozen=True)
class Tokenised:
    """The ids of one text; `answers` are the token ranges [first, stop) of its spans, closing token included.
    `resegmented`: prompts and answers were tokenised apart."""

    ids: list[int]
    answers: list[tuple[int, int]]
    resegmented: bool = False


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` and nothing else: no token is added at either end."""
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def tokenise(tokenizer: Any, layouts: Sequence[Layout]) -> list[Tokenised]:
    """The tokens of each layout, in their order. Where a span's first characters would share a token with what stands
    before them, the text is tokenised piece by piece (`resegmented`)."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    special = frozenset(tokenizer.added_tokens_decoder)
    pieces: dict[str, list[int]] = {}
    encodings = backend.encode_batch([layout.text for layout in layouts], add_special_tokens=False)
    return [
        _joint(tokenizer, layout, encoding, special, pieces) or _apart(tokenizer, layout)
        for layout, encoding in zip(layouts, encodings, strict=True)
    ]


def _joint(
    tokenizer: Any, layout: Layout, encoding: Any, special: frozenset[int], pieces: dict[str, list[int]]
) -> Tokenised | None:
    """The text's tokens as they are; None where a prompt's tokens would differ from those of the prompt alone."""
    ids = encoding.ids
    answers = []
    for span in layout.spans:
        at = _special_before(encoding, span.start, ids, special)
        cut = encoding.token_to_chars(at)[0] if at else 0
        piece = layout.text[cut : span.start]
        if piece not in pieces:
            pieces[piece] = encode(tokenizer, piece)
        first = at + len(pieces[piece])
        close = encoding.char_to_token(span.end - 1)
        if ids[at:first] != pieces[piece] or close is None or close < first or ids[close] not in special:
            return None
        answers.append((first, close + 1))
    return Tokenised(ids, answers)


def _special_before(encoding: Any, start: int, ids: Sequence[int], special: frozenset[int]) -> int:
    """The number of the last special token before character `start`; 0 where there is none."""
    at = None
    while at is None and start > 0:
        start -= 1
        at = encoding.char_to_token(start)
    at = at or 0
    while at > 0 and ids[at] not in special:
        at -= 1
    return at


def _apart(tokenizer: Any, layout: Layout) -> Tokenised:
    """Prompts and answers tokenised each on its own, so that training sees a prompt's tokens as generation will."""

    def within(text: str) -> list[int]:
        # behind a special token, so that no tokenizer takes the piece for a text's start and marks it so
        return encode(tokenizer, tokenizer.eos_token + text)[1:]

    ids: list[int] = []
    answers = []
    cursor = 0
    for span in layout.spans:
        between = layout.text[cursor : span.start]
        ids += within(between) if cursor else encode(tokenizer, between)
        answer = within(layout.text[span.start : span.end])
        answers.append((len(ids), len(ids) + len(answer)))
        ids += answer
        cursor = span.end
    return Tokenised(ids + within(layout.text[cursor:]), answers, resegmented=True)
