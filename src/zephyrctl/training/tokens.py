"""Rows become token ids here, once, before training. What is cut or dropped is counted by reason, never
silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.chat.render import RenderedPair, render_dialogue, render_pair, special_tokens_in
from zephyrctl.errors import UsageError
from zephyrctl.records import PreferenceRow, SftRow


@dataclass(frozen=True)
class SftTokens:
    """One dialogue: `labels` equal `input_ids` where loss is borne, else -100."""

    input_ids: list[int]
    labels: list[int]

    @property
    def length(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class PairTokens:
    """One preference: ids of the prompt and of both answers."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass
class Tokens:
    """Token rows of one split, what became of the others, and the rejects (`where`, `reason`, `detail`,
    `row`)."""

    rows: list[Any] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.rows]

    def reject(self, where: str, reason: str, detail: str, row: Any) -> None:
        """Counts a dropped row and keeps it."""
        self.counts[f"dropped_{reason}"] += 1
        self.rejects.append({"where": where, "reason": reason, "detail": detail, "row": row.model_dump()})


def sft_tokens(rows: Iterable[tuple[str, SftRow]], tokenizer: Any, *, max_length: int) -> Tokens:
    """Token rows of dialogues. Rows over `max_length` tokens keep their start (`cut`); a row with no answer
    token left is dropped (`dropped_too_long`), as is one that the template refuses
    (`dropped_unrenderable`)."""
    out = Tokens()
    for where, row in rows:
        try:
            rendered = render_dialogue(tokenizer, row.messages)
        except UsageError as error:
            out.reject(where, "unrenderable", error.message, row)
            continue
        ids, labels = rendered.input_ids[:max_length], rendered.labels[:max_length]
        if all(label == -100 for label in labels[1:]):
            out.reject(
                where,
                "too_long",
                f"no answer token within {max_length} of {len(rendered.input_ids)} tokens",
                row,
            )
            continue
        out.rows.append(SftTokens(ids, labels))
        out.counts["cut"] += len(rendered.input_ids) > max_length
        out.counts["cut_tokens"] += max(0, len(rendered.input_ids) - max_length)
        out.counts["resegmented"] += rendered.resegmented
        out.counts["special_tokens_in_text"] += bool(special_tokens_in(tokenizer, row.messages))
        out.counts["loss_tokens"] += sum(label != -100 for label in labels)
    return _counted(out)


def pair_tokens(
    rows: Iterable[tuple[str, PreferenceRow]], tokenizer: Any, *, max_length: int, max_prompt_length: int
) -> Tokens:
    """Token rows of preferences, cut as the recipe does.

    Where prompt and longer answer exceed `max_length`, the prompt keeps its last `max_prompt_length` tokens
    (`cut_prompt`) and each answer what room is left (`cut_chosen`, `cut_rejected`). Pairs that become equal
    by the cut are dropped (`dropped_same_after_cut`).
    """
    out = Tokens()
    for where, row in rows:
        try:
            pair = render_pair(tokenizer, row.prompt, row.chosen, row.rejected)
        except UsageError as error:
            out.reject(where, "unrenderable", error.message, row)
            continue
        kept = cut_pair(pair, max_length=max_length, max_prompt_length=max_prompt_length)
        if kept.chosen_ids == kept.rejected_ids:
            out.reject(
                where,
                "same_after_cut",
                f"both answers start with the same {len(kept.chosen_ids)} tokens",
                row,
            )
            continue
        out.rows.append(kept)
        cuts = {
            "cut_prompt": len(kept.prompt_ids) < len(pair.prompt_ids),
            "cut_chosen": len(kept.chosen_ids) < len(pair.chosen_ids),
            "cut_rejected": len(kept.rejected_ids) < len(pair.rejected_ids),
        }
        out.counts.update({name: int(happened) for name, happened in cuts.items()})
        out.counts["cut"] += any(cuts.values())
        out.counts["resegmented"] += pair.resegmented
        said = [*row.prompt, *row.chosen, *row.rejected]
        out.counts["special_tokens_in_text"] += bool(special_tokens_in(tokenizer, said))
        out.counts["loss_tokens"] += len(kept.chosen_ids) + len(kept.rejected_ids)
    return _counted(out)


def cut_pair(pair: RenderedPair, *, max_length: int, max_prompt_length: int) -> PairTokens:
    """The pair within `max_length` tokens: first the prompt loses its start, then the answers lose their
    ends."""
    prompt, chosen, rejected = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
    if len(prompt) + max(len(chosen), len(rejected)) > max_length:
        prompt = prompt[-min(max_prompt_length, max_length - 1) :]
        room = max_length - len(prompt)
        chosen, rejected = chosen[:room], rejected[:room]
    return PairTokens(prompt, chosen, rejected)


_ALWAYS = ("cut", "dropped_too_long", "dropped_unrenderable", "tokens", "loss_tokens", "rows")


def _counted(out: Tokens) -> Tokens:
    for name in _ALWAYS:
        out.counts[name] += 0
    out.counts["rows"] = len(out.rows)
    out.counts["tokens"] = sum(out.lengths)
    return out
