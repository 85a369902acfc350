"""From events to a terminal: progress and words on stderr, the result alone on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zephyrctl.cli.options import Session
from zephyrctl.cli.plain import printable
from zephyrctl.errors import ZephyrError
from zephyrctl.events import Calls, Event, Metric, Note, Preview, Progress, Table, Warning_

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_PLAIN_EVERY = 15.0
_TTY_EVERY = 0.1


class Console:
    """An `Emit` that renders events on stderr, and the one place that writes the result to stdout."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.tty = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._last = 0.0
        self._finished: tuple[str, int] | None = None
        self._open_line = False
        self._rich: RichConsole | None = None
        self._explained = False

    def __call__(self, event: Event) -> None:
        match event:
            case Warning_(text):
                self._line(f"warning: {text}", style="yellow")
            case Note(text) if not self.session.quiet:
                self._line(text)
            case Progress() if not self.session.quiet:
                self._progress(event)
            case Calls() if not self.session.quiet:
                self._calls(event)
            case Metric() if not self.session.quiet:
                self._metric(event)
            case Table() if not self.session.quiet:
                self._table(event)
            case Preview() if not self.session.json_:
                self._preview(event)

    def asking(self) -> Callable[[str], bool] | None:
        """How to put a yes-or-no question to the person at the terminal; None where nobody sits there."""
        return self._confirm if self.tty and sys.stdin.isatty() else None

    def _confirm(self, question: str) -> bool:
        self._close_line()
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _preview(self, event: Preview) -> None:
        """A previewed row is a result: it goes to stdout, in colours where a person reads it."""
        from zephyrctl.cli.preview import COLOURS, LEGEND, preview_rich, preview_text

        self._close_line()
        coloured = sys.stdout.isatty() and not self.session.no_color and "NO_COLOR" not in os.environ
        if not self._explained:
            self._line(COLOURS if coloured else LEGEND)
            self._explained = True
        if coloured:
            from rich.console import Console as RichConsole

            RichConsole(file=sys.stdout, highlight=False, soft_wrap=True).print(preview_rich(event))
            return
        sys.stdout.write(preview_text(event) + "\n")

    def result(self, text: str, document: dict[str, Any] | None = None) -> None:
        """Print the result: `text` (a ref, a listing), or with --json the document."""
        self._close_line()
        if self.session.json_:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=str) + "\n")
        elif text:
            sys.stdout.write(printable(text).rstrip("\n") + "\n")
        sys.stdout.flush()

    def failure(self, error: ZephyrError) -> None:
        """Print an error once: the words on stderr, with --json also the document on stdout."""
        self._close_line()
        self._line(f"error: {error.message}", style="bold red")
        if error.hint:
            self._line(f"  what to do: {error.hint}")
        if error.resume:
            self._line(f"  continue with: {error.resume}")
        if self.session.json_:
            sys.stdout.write(json.dumps({"error": error.as_dict()}, ensure_ascii=False, indent=2) + "\n")

    def _line(self, text: str, style: str | None = None) -> None:
        self._close_line()
        text = printable(text)
        if self.tty and style and self._coloured():
            self._terminal().print(text, style=style, highlight=False, markup=False, soft_wrap=True)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _progress(self, event: Progress) -> None:
        now = time.monotonic()
        finished = event.total is not None and event.done >= event.total
        if not finished and now - self._last < (_TTY_EVERY if self.tty else _PLAIN_EVERY):
            return
        self._last = now
        total = f"/{event.total:,}" if event.total is not None else ""
        self._status(f"{event.task}: {event.done:,}{total}", finished)

    def _calls(self, event: Calls) -> None:
        now = time.monotonic()
        finished = event.done >= event.total
        if not finished and now - self._last < (_TTY_EVERY if self.tty else _PLAIN_EVERY):
            return
        if finished and (event.task, event.total) == self._finished:
            return
        self._finished = (event.task, event.total) if finished else None
        self._last = now
        self._status(calls_line(event), finished)

    def _metric(self, event: Metric) -> None:
        now = time.monotonic()
        if event.step > 1 and now - self._last < (_TTY_EVERY if self.tty else _PLAIN_EVERY):
            return
        self._last = now
        shown = "  ".join(f"{k} {v:.4g}" for k, v in list(event.values.items())[:5])
        self._status(f"{event.task}: step {event.step}  {shown}", finished=False)

    def _status(self, text: str, finished: bool) -> None:
        if not self.tty:
            self._line(text)
            return
        sys.stderr.write("\r\x1b[2K" + printable(text)[: self._terminal().width - 1])
        sys.stderr.flush()
        self._open_line = True
        if finished:
            self._close_line()

    def _close_line(self) -> None:
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False

    def _table(self, event: Table) -> None:
        self._close_line()
        if not (self.tty and self._coloured()):
            self._line(plain_table(event.columns, event.rows, event.title))
            return
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=event.title or None, title_justify="left")
        for column in event.columns:
            table.add_column(column)
        for row in event.rows:
            table.add_row(*[Text(printable(cell)) for cell in row])
        self._terminal().print(table)

    def _coloured(self) -> bool:
        return not (self.session.no_color or os.environ.get("NO_COLOR"))

    def _terminal(self) -> RichConsole:
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True, no_color=not self._coloured())
        return self._rich


def calls_line(event: Calls) -> str:
    """How paid calls go, as one line; what is not known or is zero is left out."""
    parts = [f"{event.task}: {event.done:,}/{event.total:,}"]
    if event.eta is not None and event.done < event.total:
        parts.append(f"ETA {_duration(event.eta)}")
    if event.spent is not None:
        left = f", ${event.left:,.2f} left" if event.left is not None else ""
        parts.append(f"${event.spent:,.2f}{left}")
    if event.failures:
        parts.append(f"{event.failures:,} failed")
    if event.limited:
        parts.append(f"{event.limited:,} × 429")
    if event.requests_per_second:
        parts.append(f"{event.requests_per_second:,.1f} req/s")
    if event.tokens_per_second:
        parts.append(f"{event.tokens_per_second:,.0f} tok/s")
    if event.in_flight:
        most = f" of {event.ceiling}" if event.ceiling else ""
        parts.append(f"{event.in_flight}{most} in flight")
    if event.replayed:
        parts.append(f"{event.replayed:,} replayed")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def plain_table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], title: str = "") -> str:
    """The table as aligned text, for pipes and log files."""
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(([title] if title else []) + lines)
