"""The order in which a judge sees the completions of a prompt, aspect by aspect.

`latin_order` takes its rows from Latin squares. With as many aspects as texts every text stands in every place
exactly once, so what a place is worth cancels out of a text's mean over the aspects, at no extra cost. With fewer
aspects a text stands in as many different places as there are aspects; with more, the numbers of times that it
stands in two places differ by at most one.

Up to four texts the square is drawn from all Latin squares of its size with equal chances: a reduced square (first
row and first column in order) with equal chances, then its columns and all rows but the first in random order,
which gives every square exactly once. For more texts it is the cyclic square with rows, columns and texts in random
order: every text has equal chances in every place, not every square is possible.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from zephyrctl.records import row_seed

Order = Callable[[Sequence[str], Sequence[str], int, str], dict[str, list[str]]]
"""(completion ids, aspects, the run's seed, prompt_id) in; the ids in the order shown, for each aspect, out."""
Square = tuple[tuple[int, ...], ...]

_ENUMERATED = 4


def latin_order(
    ids: Sequence[str], aspects: Sequence[str], seed: int, prompt_id: str
) -> dict[str, list[str]]:
    """For each aspect the order shown. It depends on seed, prompt and the set of ids, not on the order in which the
    ids are given."""
    rng = random.Random(row_seed(seed, prompt_id, "order"))
    texts = sorted(ids)
    rows: list[list[str]] = []
    while len(rows) < len(aspects):
        rows += [[texts[place] for place in row] for row in latin_square(len(texts), rng)]
    return dict(zip(aspects, rows, strict=False))


def latin_square(n: int, rng: random.Random) -> Square:
    """A random Latin square: n rows of 0..n-1 in which every column holds each number once too.

    No text at all is one empty row, so that whoever collects rows gets some.
    """
    if n == 0:
        return ((),)
    if n > _ENUMERATED:
        rows, columns, symbols = (rng.sample(range(n), n) for _ in range(3))
        return tuple(tuple(symbols[(r + c) % n] for c in columns) for r in rows)
    reduced = rng.choice(reduced_squares(n))
    columns = rng.sample(range(n), n)
    rows = [0, *rng.sample(range(1, n), n - 1)]
    square = [tuple(reduced[r][c] for c in columns) for r in rows]
    rng.shuffle(square)
    return tuple(square)


@cache
def reduced_squares(n: int) -> tuple[Square, ...]:
    """All Latin squares of size n whose first row and first column are 0..n-1 in order: 1, 1, 1 and 4 for n = 1..4."""
    squares: list[Square] = [(tuple(range(n)),)]
    for first in range(1, n):
        squares = [(*square, row) for square in squares for row in _next_rows(square, first)]
    return tuple(squares)


def _next_rows(square: Square, first: int) -> list[tuple[int, ...]]:
    """The rows that begin with `first` and can stand below those there are."""
    n = len(square[0])
    rows: list[tuple[int, ...]] = [(first,)]
    for column in range(1, n):
        above = {row[column] for row in square}
        rows = [(*row, x) for row in rows for x in range(n) if x not in above and x not in row]
    return rows
