"""How work tells the outside what happens. Stages emit events; only the command line knows a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Anything a stage reports while it runs."""


@dataclass(frozen=True, slots=True)
class Note(Event):
    """A plain sentence for the reader: which input was taken, what will happen."""

    text: str


@dataclass(frozen=True, slots=True)
class Warning_(Event):
    """Something the user should know and may want to change."""

    text: str


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """`done` of `total` units of `task`; `total` None where it is not known."""

    task: str
    done: int
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Calls(Event):
    """How paid calls go: replies settled of all, of them replayed from the ledger, money in US dollars (`left`
    None = no limit, `spent` None = price not known), rates per second since the start, and what went wrong."""

    task: str
    done: int
    total: int
    replayed: int = 0
    in_flight: int = 0
    ceiling: int = 0
    requests_per_second: float = 0.0
    tokens_per_second: float = 0.0
    limited: int = 0
    failures: int = 0
    spent: float | None = None
    left: float | None = None
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Metric(Event):
    """Numbers of one training step or one evaluation (names as in metrics.jsonl)."""

    task: str
    step: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table(Event):
    """A small table for people. Cells are text; `title` may be empty."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that stand together and are treated alike."""

    text: str
    bears_loss: bool
    tokens: int
    """How many tokens the text is."""
    special: bool = False
    """Special tokens, spelled out."""
    cut: bool = False
    """Cut away: the model never sees it."""


@dataclass(frozen=True, slots=True)
class Preview(Event):
    """One row as it will be trained on. A preference has its prompt in the segments of both sides."""

    where: str
    sides: tuple[tuple[str, tuple[Segment, ...]], ...]
    """(name, segments): `dialogue`; or `chosen` and `rejected`."""
    dropped: str = ""
    """Why the row is left out; empty where it is trained on."""


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An `Emit` that drops everything, for library use."""


class Recorder:
    """An `Emit` that keeps the events, for tests and for callers that render later."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def texts(self) -> list[str]:
        """The sentences of notes and warnings, in order."""
        return [e.text for e in self.events if isinstance(e, Note | Warning_)]


def plain(event: Event) -> dict[str, Any]:
    """The event as a JSON-ready dict, for the log file kept with a step."""
    return {"event": type(event).__name__.rstrip("_").lower(), **asdict(event)}
