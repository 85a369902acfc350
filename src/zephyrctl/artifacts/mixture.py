"""Several sources read as one: `REF`, `REF=0.5` (half of its rows, drawn by hash), `REF=2` (every row twice).

A weight below 1 takes a share of the rows, each decided by the hash of its own content: a smaller share is contained
in a larger one. Above 1 rows are repeated, `2.5` = twice, and half of them once more; held-out rows never are, and
neither are prompts, which are asked once. A prompt that is held out in one source is held out in all (`test` wins);
one that a source without splits shares with a source that has them takes its split from there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.adopt import Located, OnBadRow, Source, open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.readers import is_data_file
from zephyrctl.artifacts.store import Store
from zephyrctl.config import canonical, digest_of
from zephyrctl.errors import UsageError
from zephyrctl.events import Emit, Note, silent
from zephyrctl.records import FeedbackRow, PreferenceRow, Record, SftRow, row_seed, split_of


@dataclass(frozen=True)
class Part:
    """One source of a mixture and how much of it is taken."""

    source: Source
    weight: float


@dataclass
class Mixture(Source):
    """Sources one after the other, in the order named. Raises as their `rows` do."""

    parts: list[Part] = field(default_factory=list)
    seed: int = 42
    test_fraction: float = 0.0
    counts: list[Counter[str]] = field(default_factory=list)
    _stated: dict[str, str] | None = None

    def inputs(self, role: str) -> list[InputRef]:
        """Every source with its own digest; the weights beside them, where any is not 1."""
        found = [part.source.input(role) for part in self.parts]
        if any(part.weight != 1 for part in self.parts):
            weights = [[part.source.digest, part.weight] for part in self.parts]
            shown = "weights " + ", ".join(f"{part.weight:g}" for part in self.parts)
            found.append(InputRef(role="mixture", ref=shown, digest=digest_of(weights), kind="weights"))
        return found

    @property
    def in_order(self) -> bool:
        """Never: the first rows would be those of the first source alone."""
        return False

    def shares(self) -> list[dict[str, Any]]:
        """For each source its ref, weight, and counts: `rows` it has; `used`, how many of them were given on, repeats
        included; `not_drawn`; `repeats`; `held_out_elsewhere`, rows moved to the test split; `met_before`, prompts
        that an earlier source has too."""
        return [
            {"ref": part.source.ref, "weight": part.weight, **dict(sorted(counts.items()))}
            for part, counts in zip(self.parts, self.counts, strict=True)
        ]

    def rows(self) -> Iterator[Located]:
        """`(where, split, row)`, source by source; repeats follow each other. `rejects` is filled on the way."""
        self.rejects.clear()
        stated = self._splits()
        met: set[str] = set()
        self.counts = [Counter(rows=0, used=0) for _ in self.parts]
        for part, counts in zip(self.parts, self.counts, strict=True):
            used: set[str] = set()
            for where, split, row in part.source.rows():
                counts["rows"] += 1
                identity = str(getattr(row, "prompt_id", ""))
                if identity in met:
                    counts["met_before"] += 1
                    continue
                settled = stated.get(identity, split)
                if split == "train" and settled == "test":
                    counts["held_out_elsewhere"] += 1
                for _ in range(self._copies(part.weight, settled, identity, row, counts)):
                    counts["used"] += 1
                    if self.kind == "prompts":
                        used.add(identity)
                    yield where, settled, row
            met |= used
            self.rejects.extend(part.source.rejects)

    def _copies(
        self, weight: float, split: str | None, identity: str, row: Record, counts: Counter[str]
    ) -> int:
        whole = math.floor(weight)
        copies = whole + (_draw(self.seed, row) < weight - whole)
        if (split or split_of(identity, self.test_fraction)) == "test":
            copies = min(1, copies)
        if not copies:
            counts["not_drawn"] += 1
        elif copies > 1:
            counts["repeats"] += copies - 1
        return copies

    def _splits(self) -> dict[str, str]:
        """The split of every prompt that any source states; read once, of all rows, drawn or not, so that it does not
        depend on the weights."""
        if self._stated is None:
            self._stated = {}
            for part in self.parts if len(self.parts) > 1 else ():
                for _, split, row in part.source.rows():
                    identity = str(getattr(row, "prompt_id", ""))
                    if split == "test" or (split is not None and identity not in self._stated):
                        self._stated[identity] = split
        return self._stated


def open_mixture(
    store: Store,
    texts: Sequence[str],
    kind: str,
    *,
    seed: int = 42,
    on_bad_row: OnBadRow = "fail",
    test_fraction: float = 0.0,
    emit: Emit = silent,
) -> Source:
    """The rows of kind `kind` of all that `texts` name, each with an optional `=weight`.

    One source of weight 1 is that source, as `open_source` gives it. `test_fraction` is the share that the reader
    holds out of sources without splits: those rows are not repeated. Raises UsageError for a weight that cannot be
    read or a source named twice, and as `open_source`.
    """
    named = [split_weight(text) for text in texts]
    if not named:
        raise UsageError(f"no source of {kind} is named")
    for text, weight in named:
        if kind == "prompts" and weight > 1:
            raise UsageError(
                f"{text}={weight:g}: a prompt is asked once, so a weight above 1 says nothing",
                hint="weights of prompts are shares from 0 to 1",
            )
    parts = [
        Part(open_source(store, text, kind, on_bad_row=on_bad_row, emit=emit), weight)
        for text, weight in named
    ]
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0].source
    _refuse_twice(parts)
    emit(Note("mixed from " + ", ".join(f"{part.source.ref} × {part.weight:g}" for part in parts)))
    first = parts[0].source
    return Mixture(
        kind=kind,
        ref=", ".join(part.source.ref for part in parts),
        digest=digest_of([[part.source.digest, part.weight] for part in parts]),
        world="sandbox" if any(part.source.world == "sandbox" for part in parts) else "real",
        artifact=None,
        shape=first.shape if len(parts) == 1 else f"mixture of {len(parts)} sources",
        parts=parts,
        seed=seed,
        test_fraction=test_fraction,
    )


def split_weight(text: str) -> tuple[str, float]:
    """The source and its weight: what stands after the last `=` is a weight, unless a path of that exact name exists.

    Raises UsageError for a weight that is no number above 0.
    """
    source, equals, tail = text.rpartition("=")
    if (
        not equals
        or not source
        or "/" in tail
        or is_data_file(Path(tail))
        or Path(text).expanduser().exists()
    ):
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(
            f"'{text}': the weight '{tail}' is no number above 0",
            hint=f"{source}=0.5 takes half of its rows, {source}=2 every row twice",
        )
    return source, weight


def _refuse_twice(parts: Sequence[Part]) -> None:
    seen: dict[str, Source] = {}
    for part in parts:
        source = part.source
        if (other := seen.setdefault(source.digest, source)) is not source:
            raise UsageError(
                f"{source.ref} is named twice" + (f" (as {other.ref})" if other.ref != source.ref else ""),
                hint="prompts are asked once; leave one of the two out"
                if source.kind == "prompts"
                else f"to take every row twice: {source.ref}=2",
            )


def _draw(seed: int, row: Record) -> float:
    """A number in [0, 1) from the row's own content, whatever else is read."""
    return row_seed(seed, "mixture", _content(row)) / 2**63


def _content(row: Record) -> str:
    if isinstance(row, SftRow):
        return row.row_id
    if isinstance(row, PreferenceRow):
        sides = [[m.content for m in side] for side in (row.chosen, row.rejected)]
        return canonical([row.prompt_id, sides])
    if isinstance(row, FeedbackRow):
        return canonical([row.prompt_id, [c.completion_id for c in row.completions]])
    return str(getattr(row, "prompt_id", "")) or canonical(row.model_dump(mode="json"))
