"""Several rows in one sequence: a plan made once, before training, from the lengths alone. Pure functions."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from zephyrctl.training.tokens import SftTokens


@dataclass(frozen=True)
class PackedTokens:
    """Rows end to end. `seq_lengths` are their lengths: positions and attention begin anew at each."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]

    @property
    def length(self) -> int:
        return len(self.input_ids)


def pack_plan(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers per pack, best fit by falling length: each row joins the fullest pack that still has room.

    Depends on the lengths and their order alone. A row longer than `capacity` has a pack of its own.
    """
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        place = bisect_left(open_packs, (lengths[row], 0))
        if place == len(open_packs):
            space, number = capacity, len(packs)
            packs.append([])
        else:
            space, number = open_packs.pop(place)
        packs[number].append(row)
        left = space - lengths[row]
        if left > 0:
            insort(open_packs, (left, number))
    return packs


def pack_rows(rows: Sequence[SftTokens], capacity: int) -> list[PackedTokens]:
    """The rows in packs of up to `capacity` tokens."""
    return [
        PackedTokens(
            [token for row in pack for token in rows[row].input_ids],
            [label for row in pack for label in rows[row].labels],
            [rows[row].length for row in pack],
        )
        for pack in pack_plan([row.length for row in rows], capacity)
    ]
