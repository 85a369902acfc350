"""What a model will be trained on, as a person can read it: rows as text in which every token is shown, with what bears
loss and what was cut away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from zephyrctl.chat.render import PairTurns, RenderedPair, render_dialogues, render_pairs
from zephyrctl.chat.rules import TokenRules
from zephyrctl.errors import UsageError
from zephyrctl.events import Preview, Segment
from zephyrctl.records import PreferenceRow, SftRow
from zephyrctl.training.tokens import (
    AnswerRoom,
    PairTokens,
    Truncation,
    cut_dialogue,
    cut_pair,
    loss_count,
    unpredicted,
)


def preview_dialogues(
    rows: Sequence[tuple[str, SftRow]],
    tokenizer: Any,
    *,
    max_length: int | None,
    rules: TokenRules,
    truncation: Truncation,
) -> Iterator[Preview]:
    """A preview of each dialogue; `rows` are (place, row), the settings those of `tokens.sft_tokens`."""
    rendered = render_dialogues(tokenizer, [row.messages for _, row in rows], rules=rules)
    for (where, _), one in zip(rows, rendered, strict=True):
        if isinstance(one, UsageError):
            yield Preview(where, (), one.message)
            continue
        kept = cut_dialogue(one, max_length=max_length, truncation=truncation)
        lost = len(one.input_ids) - kept.length
        first = lost if truncation == "keep_end" else 0
        marks = [
            Mark(label != -100, not first <= place < first + kept.length)
            for place, label in enumerate(unpredicted(one.labels))
        ]
        why = "" if loss_count(kept.labels) else f"no answer token within {max_length}"
        yield Preview(where, (("dialogue", segments(tokenizer, one.input_ids, marks)),), why)


def preview_pairs(
    rows: Sequence[tuple[str, PreferenceRow]],
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int,
    rules: TokenRules,
    answer_room: AnswerRoom = "rest",
) -> Iterator[Preview]:
    """A preview of each preference; `rows` are (place, row), the settings those of `tokens.pair_tokens`."""
    turns = [PairTurns(row.prompt, row.chosen, row.rejected) for _, row in rows]
    for (where, _), pair in zip(rows, render_pairs(tokenizer, turns, rules=rules), strict=True):
        if isinstance(pair, UsageError):
            yield Preview(where, (), pair.message)
            continue
        kept = cut_pair(
            pair, max_length=max_length, max_prompt_length=max_prompt_length, answer_room=answer_room
        )
        sides = tuple((side, _side(tokenizer, pair, kept, side)) for side in ("chosen", "rejected"))
        same = kept.chosen_ids == kept.rejected_ids
        yield Preview(where, sides, "both answers are the same after the cut" if same else "")


def _side(tokenizer: Any, pair: RenderedPair, kept: PairTokens, side: str) -> tuple[Segment, ...]:
    answer, stays = getattr(pair, f"{side}_ids"), len(getattr(kept, f"{side}_ids"))
    gone = len(pair.prompt_ids) - len(kept.prompt_ids)
    marks = [Mark(False, place < gone) for place in range(len(pair.prompt_ids))]
    marks += [Mark(True, place >= stays) for place in range(len(answer))]
    return segments(tokenizer, [*pair.prompt_ids, *answer], marks)


class Mark(NamedTuple):
    """How one token is treated."""

    bears_loss: bool
    cut: bool = False


def segments(tokenizer: Any, ids: Sequence[int], marks: Sequence[Mark]) -> tuple[Segment, ...]:
    """The tokens as text, in runs that are treated alike. The texts, one after another, are the text of all tokens (a
    character of several tokens that a border goes through is shown as a replacement mark)."""
    special = frozenset(tokenizer.added_tokens_decoder)
    treated = [(mark, token in special) for token, mark in zip(ids, marks, strict=True)]
    found, stop, shown = [], 0, ""
    for (mark, is_special), run in groupby(treated):
        start, stop = stop, stop + len(list(run))
        text = _spelled(tokenizer, ids[:stop])
        # A run on its own would lose what its tokens mean behind others, such as a leading space.
        piece = text[len(shown) :] if text.startswith(shown) else _spelled(tokenizer, ids[start:stop])
        shown = text
        found.append(Segment(piece, mark.bears_loss and not mark.cut, stop - start, is_special, mark.cut))
    return tuple(found)


def _spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
