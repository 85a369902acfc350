"""Where the tokens of one row part under two recipes: the first differing token, and every further spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.records import PreferenceRow, SftRow
from zephyrctl.training.tokens import AnswerRoom, Tokens, Truncation, pair_tokens, sft_tokens

_AROUND = 12
"""Tokens of context shown on either side of a spot."""


@dataclass(frozen=True)
class Decisions:
    """All that settles which tokens a row becomes under one recipe, and which of them bear loss. Lengths in tokens."""

    rules: TokenRules
    max_length: int
    chat_template: str | None = None
    default_template: str = "zephyr"
    system: str | None = None
    date: str | None = None
    truncation: Truncation = "keep_start"
    """SFT: which end of a row that is too long is kept."""
    wrapped: bool = False
    """SFT: rows go on in the next sequence, so that none is cut."""
    keep_bos: bool = False
    """A beginning-of-sequence token that the model's own template was given by an earlier training stays."""
    max_prompt_length: int = 512
    """DPO: what a prompt keeps where a pair is too long."""
    answer_room: AnswerRoom = "rest"
    """DPO: what an answer keeps then."""

    def tokenizer(self, folder: Path) -> Any:
        """The tokenizer of a model folder with the recipe's chat template. Raises as `load_tokenizer`."""
        return load_tokenizer(
            folder,
            template=self.chat_template,
            default_template=self.default_template,
            system=self.system,
            date=self.date,
            bos=None if self.keep_bos else self.rules.bos,
        )


@dataclass(frozen=True)
class Token:
    """One token; `loss` says whether it bears loss."""

    id: int
    text: str
    loss: bool


@dataclass(frozen=True)
class Stream:
    """A row's tokens in order; `dropped` says why there are none."""

    tokens: tuple[Token, ...] = ()
    dropped: str | None = None

    @property
    def with_loss(self) -> int:
        """Tokens that bear loss."""
        return sum(token.loss for token in self.tokens)


@dataclass(frozen=True)
class Spot:
    """A run of tokens in which two streams differ, by their ids or by their loss alone.

    `at` is where it starts in either (counted from 0); `first` or `second` may be empty, where the other has more.
    """

    at: tuple[int, int]
    first: tuple[Token, ...]
    second: tuple[Token, ...]
    before: str
    """The text before the spot, which both share."""
    after: tuple[str, str]
    """The text behind it, in either."""

    @property
    def loss_only(self) -> bool:
        """Whether the tokens are the same and only the loss is not."""
        return [token.id for token in self.first] == [token.id for token in self.second]


@dataclass(frozen=True)
class Parting:
    """One row under two recipes. `side`: `chosen` or `rejected` for a pair (behind its prompt), empty for a
    dialogue."""

    row: str
    side: str
    first: Stream
    second: Stream
    spots: list[Spot] = field(default_factory=list)


def sft_stream(row: SftRow, tokenizer: Any, decisions: Decisions) -> Stream:
    """The dialogue's tokens as SFT trains on them."""
    longest = None if decisions.wrapped else decisions.max_length
    made = sft_tokens(
        [("", row)],
        tokenizer,
        max_length=longest,
        rules=decisions.rules,
        truncation=decisions.truncation,
        processes=1,
    )
    if not made.rows:
        return Stream(dropped=_why(made))
    kept = made.rows[0]
    return _stream(tokenizer, kept.input_ids, [label != -100 for label in kept.labels])


def pair_streams(row: PreferenceRow, tokenizer: Any, decisions: Decisions) -> dict[str, Stream]:
    """Prompt and answer of both sides as DPO trains on them: `chosen`, `rejected`."""
    made = pair_tokens(
        [("", row)],
        tokenizer,
        max_length=decisions.max_length,
        max_prompt_length=decisions.max_prompt_length,
        rules=decisions.rules,
        answer_room=decisions.answer_room,
        processes=1,
    )
    if not made.rows:
        return dict.fromkeys(("chosen", "rejected"), Stream(dropped=_why(made)))
    kept = made.rows[0]
    sides = {"chosen": kept.chosen_ids, "rejected": kept.rejected_ids}
    return {
        side: _stream(tokenizer, kept.prompt_ids + ids, [False] * len(kept.prompt_ids) + [True] * len(ids))
        for side, ids in sides.items()
    }


def sft_partings(
    rows: Sequence[tuple[str, SftRow]], folder: Path, first: Decisions, second: Decisions
) -> list[Parting]:
    """Every dialogue under both recipes, with the tokenizer in `folder`. Raises as `load_tokenizer`."""
    one, two = first.tokenizer(folder), second.tokenizer(folder)
    return [
        _parting(one, name, "", sft_stream(row, one, first), sft_stream(row, two, second))
        for name, row in rows
    ]


def pair_partings(
    rows: Sequence[tuple[str, PreferenceRow]], folder: Path, first: Decisions, second: Decisions
) -> list[Parting]:
    """Both sides of every pair under both recipes, with the tokenizer in `folder`. Raises as `load_tokenizer`."""
    one, two = first.tokenizer(folder), second.tokenizer(folder)
    found = []
    for name, row in rows:
        here, there = pair_streams(row, one, first), pair_streams(row, two, second)
        found += [_parting(one, name, side, here[side], there[side]) for side in here]
    return found


Spell = Callable[[Sequence[Token]], str]
"""The text of several tokens in a row."""


def _joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def spots(first: Stream, second: Stream, spell: Spell = _joined) -> list[Spot]:
    """Where two streams differ, in order. The first spot starts at the first differing token; the others are those of a
    shortest-looking edit between what the streams share at their ends. `spell` gives the text around a spot."""
    a, b = ([(token.id, token.loss) for token in stream.tokens] for stream in (first, second))
    head = _shared(a, b)
    tail = _shared(a[head:][::-1], b[head:][::-1])
    matcher = SequenceMatcher(None, a[head : len(a) - tail], b[head : len(b) - tail], autojunk=False)
    runs = [
        (head + a0, head + a1, head + b0, head + b1)
        for kind, a0, a1, b0, b1 in matcher.get_opcodes()
        if kind != "equal"
    ]
    ends = [run[0] for run in runs[1:]]
    return [
        _spot(first, second, _slid(run, a, b, end), spell)
        for run, end in zip(runs, [*ends, len(a)], strict=False)
    ]


_Run = tuple[int, int, int, int]
"""Start and end in the first stream, start and end in the second."""


def _slid(run: _Run, a: Sequence[Any], b: Sequence[Any], end: int) -> _Run:
    """A run that only one stream has, moved as far to the right as it can be, but not over `end` in the first stream:
    of two end-of-sequence tokens the second one is the addition."""
    i, j, k, m = run
    while i == j < end and k < m < len(b) and b[k] == b[m]:
        i, j, k, m = i + 1, j + 1, k + 1, m + 1
    while k == m and i < j < end and a[i] == a[j]:
        i, j, k, m = i + 1, j + 1, k + 1, m + 1
    return i, j, k, m


def _spot(first: Stream, second: Stream, run: _Run, spell: Spell) -> Spot:
    i, j, k, m = run
    after = spell(first.tokens[j : j + _AROUND]), spell(second.tokens[m : m + _AROUND])
    before = spell(first.tokens[max(0, i - _AROUND) : i])
    return Spot((i, k), first.tokens[i:j], second.tokens[k:m], before, after)


def _parting(tokenizer: Any, row: str, side: str, first: Stream, second: Stream) -> Parting:
    def spell(tokens: Sequence[Token]) -> str:
        """Decoded together, as characters may be spread over several tokens; what the ends cut off is left out."""
        if not tokens:
            return ""
        ids = [token.id for token in tokens]
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        space = " " if tokens[0].text.startswith(" ") and not text.startswith(" ") else ""
        return space + text.strip("\ufffd")

    return Parting(row, side, first, second, spots(first, second, spell))


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements the two begin with in common."""
    count = 0
    for one, two in zip(a, b, strict=False):
        if one != two:
            break
        count += 1
    return count


def _stream(tokenizer: Any, ids: Sequence[int], loss: Sequence[bool]) -> Stream:
    return Stream(
        tuple(Token(number, _text(tokenizer, number), bears) for number, bears in zip(ids, loss, strict=True))
    )


def _text(tokenizer: Any, number: int) -> str:
    """A token's text; its spelling in the vocabulary where it is no text of its own."""
    text = str(tokenizer.decode([number], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    spelling = str(tokenizer.convert_ids_to_tokens(number))
    if not text or "\ufffd" in text:
        return spelling
    # a leading space is dropped when a token is decoded alone
    return f" {text}" if spelling.startswith("▁") and not text.startswith(" ") else text


def _why(made: Tokens) -> str:
    return ", ".join(reason.replace("_", " ") for reason in made.dropped)
