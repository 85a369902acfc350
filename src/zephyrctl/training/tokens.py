"""Rows become token ids here, once, before training. What is cut or dropped is counted by reason, never silent.

Counts of a split: `rows` and `tokens` kept, `loss_tokens` among them; `cut` rows that were shortened, the `cut_tokens`
and `cut_loss_tokens` they lost; `lost_end` rows (or answers) that lost the token they close with, `lost_start` rows
that lost their beginning-of-sequence token; `dropped_<reason>` rows left out; `fault_<name>` rows with a fault of
`chat.lint` before any cut. Truncated rows never stop a run; dropped rows do, above a share that
`require_few_dropped` is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from zephyrctl.chat.lint import FAULTS, Marks, lint, read_marks
from zephyrctl.chat.render import (
    PairTurns,
    Rendered,
    RenderedPair,
    render_dialogues,
    render_pairs,
    special_tokens_in,
)
from zephyrctl.chat.rules import TokenRules
from zephyrctl.errors import StageRejected, UsageError
from zephyrctl.records import PreferenceRow, SftRow
from zephyrctl.training.crowd import in_chunks
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens, TokenRows

__all__ = [
    "PairTokens",
    "SftTokens",
    "Tokens",
    "cut_dialogue",
    "cut_pair",
    "kept_lengths",
    "pair_tokens",
    "require_few_dropped",
    "sft_tokens",
]

Truncation = Literal["keep_start", "keep_end"]
AnswerRoom = Literal["rest", "fixed"]
"""The tokens that an answer keeps once its prompt was cut: what the prompt left (rest), or `max_length` less
`max_prompt_length` however short the prompt is, as TRL up to 0.11 (fixed)."""

_SOUND = TokenRules()
_ALWAYS = (
    "rows", "tokens", "loss_tokens", "cut", "cut_tokens", "cut_loss_tokens", "lost_end", "dropped_too_long",
    "dropped_unrenderable",
)  # fmt: skip


@dataclass
class Tokens:
    """Token rows of one split, what became of the others, and the rejects (`where`, `reason`, `detail`, `row`)."""

    rows: TokenRows[Any]
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return self.rows.lengths()

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped, by reason; reasons that did not occur are left out."""
        return {
            k.removeprefix("dropped_"): n
            for k, n in sorted(self.counts.items())
            if n and k.startswith("dropped_")
        }

    def warnings(self) -> list[str]:
        """What the user should know of the counts, each a clause; none where every row is whole."""
        n, told = self.counts, []
        if n["cut"]:
            ends = f"; answers that lost their end: {n['lost_end']}" if n["lost_end"] else ""
            told.append(
                f"rows cut to fit: {n['cut']} ({n['cut_tokens']} tokens lost, {n['cut_loss_tokens']} of them"
                f" would bear loss{ends})"
            )
        if n["lost_start"]:
            told.append(f"rows whose cut took the beginning-of-sequence token: {n['lost_start']}")
        told += [f"rows left out, {why.replace('_', ' ')}: {rows}" for why, rows in self.dropped.items()]
        if n["special_tokens_in_text"]:
            told.append(f"rows that spell out special tokens in their text: {n['special_tokens_in_text']}")
        if n["rewritten_answers"]:
            told.append(
                "earlier answers without loss, as the template renders them otherwise once later turns follow:"
                f" {n['rewritten_answers']}"
            )
        told += [
            f"faulty rows: {rows} ({what})" for name, what in FAULTS.items() if (rows := n[f"fault_{name}"])
        ]
        return told

    def reject(self, where: str, reason: str, detail: str, row: Any) -> None:
        """Counts a dropped row and keeps it."""
        self.counts[f"dropped_{reason}"] += 1
        self.rejects.append({"where": where, "reason": reason, "detail": detail, "row": row.model_dump()})

    def extend(self, other: Tokens) -> None:
        """Takes up all that `other` holds."""
        self.rows.extend(other.rows)
        self.counts.update(other.counts)
        self.rejects += other.rejects


def sft_tokens(
    rows: Iterable[tuple[str, SftRow]],
    tokenizer: Any,
    *,
    max_length: int | None,
    rules: TokenRules = _SOUND,
    truncation: Truncation = "keep_start",
    processes: int | None = None,
) -> Tokens:
    """Token rows of dialogues; `rows` are (place, row).

    Of a row over `max_length` tokens the start or the end is kept (None keeps rows whole, as wrapped packing wants
    them); one with no loss-bearing token left is dropped (`too_long`), as is one that the template refuses
    (`unrenderable`). Many rows are shared out among `processes`
    (default: one per processor); the outcome does not depend on their number.
    """
    chunk = partial(_dialogues, max_length=max_length, rules=rules, truncation=truncation)
    return _tokenised(rows, tokenizer, chunk, SftRows, processes)


def pair_tokens(
    rows: Iterable[tuple[str, PreferenceRow]],
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int,
    rules: TokenRules = _SOUND,
    answer_room: AnswerRoom = "rest",
    processes: int | None = None,
) -> Tokens:
    """Token rows of preferences, cut as `cut_pair` does (`cut_prompt`, `cut_chosen`, `cut_rejected` count its cuts).

    Pairs that become equal by the cut are dropped (`same_after_cut`), as are those that the template refuses
    (`unrenderable`). Many rows are shared out among `processes` (default: one per processor).
    """
    cut = partial(
        cut_pair, max_length=max_length, max_prompt_length=max_prompt_length, answer_room=answer_room
    )
    return _tokenised(rows, tokenizer, partial(_pairs, cut=cut, rules=rules), PairRows, processes)


def cut_pair(
    pair: RenderedPair, *, max_length: int, max_prompt_length: int, answer_room: AnswerRoom = "rest"
) -> PairTokens:
    """The pair within `max_length` tokens: of the prompt the last ones that `kept_lengths` allows, of the answers the
    first."""
    lengths = (len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids))
    prompt, chosen, rejected = kept_lengths(
        lengths, max_length=max_length, max_prompt_length=max_prompt_length, answer_room=answer_room
    )
    first = len(pair.prompt_ids) - prompt
    return PairTokens(pair.prompt_ids[first:], pair.chosen_ids[:chosen], pair.rejected_ids[:rejected])


def kept_lengths(
    lengths: tuple[int, int, int],
    *,
    max_length: int,
    max_prompt_length: int,
    answer_room: AnswerRoom = "rest",
) -> tuple[int, int, int]:
    """How many tokens prompt, chosen and rejected answer keep, as the recipe cuts.

    Where prompt and longer answer exceed `max_length`, the prompt keeps `max_prompt_length`; where they still do, the
    answers keep what room there is.
    """
    prompt, chosen, rejected = lengths
    longer, most = max(chosen, rejected), min(max_prompt_length, max_length - 1)
    if prompt + longer > max_length:
        prompt = min(prompt, most)
    if prompt + longer > max_length:
        room = max_length - (most if answer_room == "fixed" else prompt)
        chosen, rejected = min(chosen, room), min(rejected, room)
    return prompt, chosen, rejected


def require_few_dropped(tokens: Tokens, max_dropped: float) -> None:
    """Raises StageRejected where more than the share `max_dropped` of the rows was dropped."""
    dropped = tokens.dropped
    lost, rows = sum(dropped.values()), len(tokens.rows) + sum(dropped.values())
    if not lost or lost / rows <= max_dropped:
        return
    first = tokens.rejects[0]
    reasons = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in dropped.items())
    raise StageRejected(
        f"{lost} of {rows} training rows ({lost / rows:.1%}) would be dropped, {max_dropped:.1%} may: {reasons};"
        f" the first is {first['where']}: {first['detail']}",
        hint=_what_helps(dropped)
        + f"; or accept it, free of charge: --max-dropped {_just_above(lost, rows)}",
    )


def _what_helps(dropped: dict[str, int]) -> str:
    most = max(dropped, key=lambda reason: dropped[reason])
    if most == "unrenderable":
        return "another --chat-template, or mend those rows"
    return "a larger --max-length"


def _just_above(lost: int, rows: int) -> float:
    """The share in whole hundredths that lets so many drops pass, 1 at the most."""
    return -(-100 * lost // rows) / 100


def _tokenised(
    rows: Iterable[tuple[str, Any]],
    tokenizer: Any,
    chunk: Callable[[Any, list[tuple[str, Any]]], Tokens],
    kind: type[TokenRows[Any]],
    processes: int | None,
) -> Tokens:
    out = Tokens(kind())
    for part in in_chunks(list(rows), tokenizer, chunk, processes):
        out.extend(part)
    for name in _ALWAYS:
        out.counts[name] += 0
    out.counts["rows"] = len(out.rows)
    out.counts["tokens"] = sum(out.lengths)
    return out


def _dialogues(
    tokenizer: Any,
    rows: list[tuple[str, SftRow]],
    *,
    max_length: int | None,
    rules: TokenRules,
    truncation: Truncation,
) -> Tokens:
    out = Tokens(SftRows())
    marks = read_marks(tokenizer)
    rendered = render_dialogues(tokenizer, [row.messages for _, row in rows], rules=rules)
    for (where, row), one in zip(rows, rendered, strict=True):
        if isinstance(one, UsageError):
            out.reject(where, "unrenderable", one.message, row)
            continue
        kept = cut_dialogue(one, max_length=max_length, truncation=truncation)
        if loss_count(kept.labels) == 0:
            detail = f"no answer token within {max_length} of {len(one.input_ids)} tokens"
            out.reject(where, "too_long", detail, row)
            continue
        out.rows.append(kept)
        out.counts["loss_tokens"] += loss_count(kept.labels)
        if kept.length < len(one.input_ids):
            _count_cut(out.counts, one, kept, marks, truncation)
        out.counts.update(_faults(one.input_ids, one.loss_mask, marks, rules))
        out.counts["resegmented"] += one.resegmented
        out.counts["rewritten_answers"] += one.rewritten
        out.counts["special_tokens_in_text"] += bool(special_tokens_in(tokenizer, row.messages))
    return out


def cut_dialogue(rendered: Rendered, *, max_length: int | None, truncation: Truncation) -> SftTokens:
    """The start or the end of the dialogue, `max_length` tokens at the most (None: all of it)."""
    ids, labels = rendered.input_ids, rendered.labels
    most = len(ids) if max_length is None else max_length
    kept = slice(0, most) if truncation == "keep_start" else slice(max(0, len(ids) - most), None)
    return SftTokens(ids[kept], unpredicted(labels[kept]))


def _count_cut(
    counts: Counter[str], whole: Rendered, kept: SftTokens, marks: Marks, truncation: Truncation
) -> None:
    counts["cut"] += 1
    counts["cut_tokens"] += len(whole.input_ids) - kept.length
    counts["cut_loss_tokens"] += loss_count(unpredicted(whole.labels)) - loss_count(kept.labels)
    if truncation == "keep_start":
        counts["lost_end"] += any(label in marks.ends for label in whole.labels[kept.length :])
    counts["lost_start"] += _loses_bos(marks, whole.input_ids, kept.input_ids)


def _faults(ids: list[int], bears: list[bool], marks: Marks, rules: TokenRules) -> list[str]:
    return [f"fault_{name}" for name in lint(ids, bears, marks, rules)]


def _pairs(
    tokenizer: Any,
    rows: list[tuple[str, PreferenceRow]],
    *,
    cut: Callable[[RenderedPair], PairTokens],
    rules: TokenRules,
) -> Tokens:
    out = Tokens(PairRows())
    marks = read_marks(tokenizer)
    turns = [PairTurns(row.prompt, row.chosen, row.rejected) for _, row in rows]
    for (where, row), pair in zip(rows, render_pairs(tokenizer, turns, rules=rules), strict=True):
        if isinstance(pair, UsageError):
            out.reject(where, "unrenderable", pair.message, row)
            continue
        kept = cut(pair)
        if kept.chosen_ids == kept.rejected_ids:
            detail = f"both answers start with the same {len(kept.chosen_ids)} tokens"
            out.reject(where, "same_after_cut", detail, row)
            continue
        out.rows.append(kept)
        _count_pair(out.counts, pair, kept)
        out.counts["lost_start"] += _loses_bos(marks, pair.prompt_ids, kept.prompt_ids)
        out.counts.update(_pair_faults(pair, marks, rules))
        out.counts["resegmented"] += pair.resegmented
        said = [*row.prompt, *row.chosen, *row.rejected]
        out.counts["special_tokens_in_text"] += bool(special_tokens_in(tokenizer, said))
    return out


_SIDES = ("prompt", "chosen", "rejected")


def _count_pair(counts: Counter[str], pair: RenderedPair, kept: PairTokens) -> None:
    lost = {s: len(getattr(pair, f"{s}_ids")) - len(getattr(kept, f"{s}_ids")) for s in _SIDES}
    counts.update({f"cut_{side}": int(tokens > 0) for side, tokens in lost.items()})
    counts["cut"] += any(lost.values())
    counts["cut_tokens"] += sum(lost.values())
    counts["cut_loss_tokens"] += lost["chosen"] + lost["rejected"]
    counts["lost_end"] += (lost["chosen"] > 0) + (lost["rejected"] > 0)
    counts["loss_tokens"] += len(kept.chosen_ids) + len(kept.rejected_ids)


def loss_count(labels: list[int]) -> int:
    """How many labels bear loss."""
    return len(labels) - labels.count(-100)


def unpredicted(labels: list[int]) -> list[int]:
    """`labels` with none on the first token, which nothing before it predicts."""
    return [-100, *labels[1:]] if labels else []


def _pair_faults(pair: RenderedPair, marks: Marks, rules: TokenRules) -> set[str]:
    found: set[str] = set()
    for answer in (pair.chosen_ids, pair.rejected_ids):
        bears = [False] * len(pair.prompt_ids) + [True] * len(answer)
        found.update(_faults([*pair.prompt_ids, *answer], bears, marks, rules))
    return found


def _loses_bos(marks: Marks, before: list[int], after: list[int]) -> bool:
    return marks.bos is not None and before[:1] == [marks.bos] and after[:1] != [marks.bos]
