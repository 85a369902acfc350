"""Token rows of a whole data set in flat arrays: five bytes a token, mapped from disk by as many processes as wanted.

A list of Python numbers takes eight to thirty-six bytes a token and cannot be shared; 200,000 dialogues would not fit.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, overload

Row = TypeVar("Row")


@dataclass(frozen=True)
class SftTokens:
    """One dialogue: `labels` equal `input_ids` where loss is borne, else -100. The first token never bears loss, since
    nothing predicts it."""

    input_ids: list[int]
    labels: list[int]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.input_ids)


@dataclass(frozen=True)
class PairTokens:
    """One preference: ids of the prompt and of both answers."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class Column:
    """Many short lists of whole numbers, end to end. `code` is the array module's type code."""

    def __init__(self, code: str) -> None:
        self.values: Any = array(code)
        self.ends: Any = array("q", [0])

    def append(self, numbers: Iterable[int]) -> None:
        """One more list."""
        self.values.extend(numbers)
        self.ends.append(len(self.values))

    def extend(self, other: Column) -> None:
        """All lists of `other`."""
        start = len(self.values)
        self.values.extend(other.values)
        self.ends.extend(start + end for end in other.ends[1:])

    def __getitem__(self, row: int) -> list[int]:
        found: list[int] = self.values[self.ends[row] : self.ends[row + 1]].tolist()
        return found

    def lengths(self) -> list[int]:
        """The length of every list."""
        ends = self.ends.tolist()
        return [after - before for before, after in pairwise(ends)]

    def save(self, stem: Path) -> None:
        """Writes `<stem>.npy` and `<stem>.ends.npy`."""
        import numpy as np

        for name, numbers in ((".npy", self.values), (".ends.npy", self.ends)):
            np.save(stem.with_name(stem.name + name), np.asarray(numbers), allow_pickle=False)

    @classmethod
    def open(cls, stem: Path) -> Column:
        """The column that `save` wrote, its values left on disk until they are read. It cannot grow."""
        import numpy as np

        column = cls("b")
        column.ends = np.load(stem.with_name(stem.name + ".ends.npy"), allow_pickle=False)
        mode: Any = "r" if column.ends[-1] else None  # an empty file cannot be mapped
        column.values = np.load(stem.with_name(stem.name + ".npy"), mmap_mode=mode, allow_pickle=False)
        return column


class TokenRows(Sequence[Row], Generic[Row]):
    """Rows as a sequence; each is made when it is asked for. Subclasses name their columns and make a row of them."""

    codes: ClassVar[dict[str, str]]
    """Name of each column and the type code of its numbers."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.columns = {name: Column(code) for name, code in self.codes.items()}
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """One more row."""
        raise NotImplementedError

    def row(self, number: int) -> Row:
        """The row of this number, from 0 on."""
        raise NotImplementedError

    def lengths(self) -> list[int]:
        """The `length` of every row, without making the rows."""
        raise NotImplementedError

    def extend(self, other: TokenRows[Row]) -> None:
        """All rows of `other`."""
        for name, column in self.columns.items():
            column.extend(other.columns[name])

    def save(self, folder: Path) -> None:
        """Writes the columns into `folder`, which exists."""
        for name, column in self.columns.items():
            column.save(folder / name)

    @classmethod
    def open(cls, folder: Path) -> TokenRows[Row]:
        """The rows that `save` wrote, mapped from disk."""
        rows = cls()
        rows.columns = {name: Column.open(folder / name) for name in cls.codes}
        return rows

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).ends) - 1

    def __iter__(self) -> Iterator[Row]:
        return (self.row(number) for number in range(len(self)))

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self.row(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.row(number % len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class SftRows(TokenRows[SftTokens]):
    """Dialogues."""

    codes: ClassVar[dict[str, str]] = {"input_ids": "i", "bears_loss": "b"}

    def append(self, row: SftTokens) -> None:
        """One more dialogue."""
        self.columns["input_ids"].append(row.input_ids)
        self.columns["bears_loss"].append([label != -100 for label in row.labels])

    def row(self, number: int) -> SftTokens:
        """The dialogue of this number."""
        ids, bears = self.columns["input_ids"][number], self.columns["bears_loss"][number]
        return SftTokens(ids, [token if b else -100 for token, b in zip(ids, bears, strict=True)])

    def lengths(self) -> list[int]:
        """Tokens of every dialogue."""
        return self.columns["input_ids"].lengths()


class PairRows(TokenRows[PairTokens]):
    """Preferences."""

    codes: ClassVar[dict[str, str]] = {"prompt_ids": "i", "chosen_ids": "i", "rejected_ids": "i"}

    def append(self, row: PairTokens) -> None:
        """One more pair."""
        for name, column in self.columns.items():
            column.append(getattr(row, name))

    def row(self, number: int) -> PairTokens:
        """The pair of this number."""
        return PairTokens(*(column[number] for column in self.columns.values()))

    def lengths(self) -> list[int]:
        """Tokens of prompt and longer answer of every pair."""
        prompt, chosen, rejected = (column.lengths() for column in self.columns.values())
        return [p + max(c, r) for p, c, r in zip(prompt, chosen, rejected, strict=True)]
