"""Several rows in one sequence: a plan made once, before training, from the lengths alone. Pure functions.

The plan says which part of which row lies in which pack. It depends on the lengths, their order and the seed, so every
process and every number of workers makes the same one, and steps and resume position are known before a model is
loaded. Rows of a pack never see each other: positions and attention begin anew at each.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

from zephyrctl.errors import IntegrityError
from zephyrctl.records import row_seed
from zephyrctl.training.token_rows import SftTokens

How = Literal["best-fit", "wrapped"]


class Piece(NamedTuple):
    """The tokens `start` to `stop` (0-based, `stop` not included) of a row."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class PackPlan:
    """What lies in each pack, in order. Every token of every row is in exactly one pack."""

    how: How
    capacity: int
    """Tokens that a pack may hold; only a row longer than that has a longer pack, to itself (best-fit)."""
    packs: tuple[tuple[Piece, ...], ...]

    def __len__(self) -> int:
        return len(self.packs)

    def lengths(self) -> list[int]:
        """Tokens of every pack."""
        return [sum(piece.stop - piece.start for piece in pack) for pack in self.packs]

    def documents(self) -> list[list[int]]:
        """For every pack the lengths of what lies in it, apart from each other."""
        return [[piece.stop - piece.start for piece in pack] for pack in self.packs]

    @property
    def tokens(self) -> int:
        """Tokens of all packs."""
        return sum(self.lengths())

    def to_json(self) -> str:
        """The plan as one line of JSON: for every pack its pieces, each `[row, start, stop]`."""
        return json.dumps(
            {"how": self.how, "capacity": self.capacity, "packs": self.packs}, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> PackPlan:
        """The plan that `to_json` wrote. Raises IntegrityError where `text` is not one."""
        try:
            body = json.loads(text)
            packs = tuple(tuple(Piece(*map(int, piece)) for piece in pack) for pack in body["packs"])
            return cls(body["how"], int(body["capacity"]), packs)
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"not a pack plan: {error}") from None


def make_packs(lengths: Sequence[int], capacity: int, how: How, *, seed: int) -> PackPlan:
    """The plan for rows of these lengths (tokens).

    best-fit: whole rows by falling length, each into the fullest pack that still has room; the seed decides between
    rows of one length. wrapped: all rows end to end in an order that the seed decides, cut every `capacity` tokens; the
    last pack, shorter than the others, is kept.
    """
    order = list(range(len(lengths)))
    random.Random(row_seed(seed, "packs", how)).shuffle(order)
    sizes = [int(length) for length in lengths]
    if how == "wrapped":
        return PackPlan(how, capacity, _wrapped(sizes, order, capacity))
    packs = tuple(
        tuple(Piece(row, 0, sizes[row]) for row in pack) for pack in _best_fit(sizes, order, capacity)
    )
    return PackPlan(how, capacity, packs)


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers per pack. Packs with equal room wait in one stack; `rooms` lists in order the rooms that have one."""
    packs: list[list[int]] = []
    waiting: dict[int, list[int]] = {}
    rooms: list[int] = []
    for row in sorted(order, key=lambda row: -lengths[row]):
        length = lengths[row]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, number = capacity, len(packs)
            packs.append([])
        else:
            room = rooms[place]
            number = waiting[room].pop()
            if not waiting[room]:
                del rooms[place]
        packs[number].append(row)
        left = room - length
        if left > 0:
            if not waiting.setdefault(left, []):
                insort(rooms, left)
            waiting[left].append(number)
    return packs


def _wrapped(lengths: Sequence[int], order: Sequence[int], capacity: int) -> tuple[tuple[Piece, ...], ...]:
    packs: list[tuple[Piece, ...]] = []
    pack: list[Piece] = []
    room = capacity
    for row in order:
        start = 0
        while start < lengths[row]:
            stop = min(lengths[row], start + room)
            pack.append(Piece(row, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                packs.append(tuple(pack))
                pack, room = [], capacity
    return (*packs, tuple(pack)) if pack else tuple(packs)


@dataclass(frozen=True)
class PackedTokens:
    """Rows, or parts of rows, end to end. `seq_lengths` are their lengths: positions and attention begin anew at each,
    and the first token of each bears no loss."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.input_ids)


class PackedRows(Sequence[PackedTokens]):
    """The packs of a plan over `rows`, each put together when it is asked for."""

    def __init__(self, rows: Sequence[SftTokens], plan: PackPlan) -> None:
        self.rows = rows
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    @overload
    def __getitem__(self, number: int) -> PackedTokens: ...
    @overload
    def __getitem__(self, number: slice) -> list[PackedTokens]: ...
    def __getitem__(self, number: int | slice) -> PackedTokens | list[PackedTokens]:
        if isinstance(number, slice):
            return [self._pack(pack) for pack in self.plan.packs[number]]
        return self._pack(self.plan.packs[number])

    def lengths(self) -> list[int]:
        """Tokens of every pack, without making the packs."""
        return self.plan.lengths()

    def _pack(self, pack: Sequence[Piece]) -> PackedTokens:
        ids: list[int] = []
        labels: list[int] = []
        for number, start, stop in pack:
            row = self.rows[number]
            ids += row.input_ids[start:stop]
            labels += [-100, *row.labels[start + 1 : stop]]
        return PackedTokens(ids, labels, [piece.stop - piece.start for piece in pack])


def pack_rows(rows: Any, capacity: int, how: How = "best-fit", *, seed: int = 0) -> PackedRows:
    """The rows (SftTokens) in packs of up to `capacity` tokens."""
    lengths = rows.lengths() if hasattr(rows, "lengths") else [row.length for row in rows]
    return PackedRows(rows, make_packs(lengths, capacity, how, seed=seed))
