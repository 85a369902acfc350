"""The loopback teacher in a terminal: its options, what it says, and the files that it keeps for other processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from zephyrctl.errors import UsageError
from zephyrctl.money import Price, parse_price
from zephyrctl.testing.replies import MODES, check_mode

_LOOK_SECONDS = 0.2


class Watched(Protocol):
    """The parts of the loopback teacher that are shown."""

    @property
    def url(self) -> str: ...
    @property
    def openai_url(self) -> str: ...
    @property
    def port(self) -> int: ...

    def stats(self) -> dict[str, Any]:
        """The counts."""
        ...


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; without a script every call gets an answer."""
    modes = "\n".join(f"  {name:<18} {what}" for name, what in MODES.items()).replace("%", "%%")
    parser = argparse.ArgumentParser(
        prog="python -m zephyrctl.testing.teacher",
        description="A teacher on this machine that fails as told and counts what it would bill.",
        epilog=f"modes, beside every status from 400 to 599 (429:900 says Retry-After: 900):\n{modes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before each reply")
    parser.add_argument(
        "--script", type=_modes, default=[], metavar="MODE,MODE,…", help="modes of the first calls, then ok"
    )
    parser.add_argument("--always", type=_mode, default="ok", metavar="MODE", help="one mode for all calls")
    parser.add_argument("--max-in-flight", type=int, metavar="N", help="calls above it get 429")
    parser.add_argument("--rpm", type=float, metavar="N", help="calls a minute above which they get 429")
    parser.add_argument(
        "--slow-share", type=_share, metavar="SHARE:FACTOR", help="this share of calls is slower"
    )
    parser.add_argument("--price", type=_price, metavar="in=3,out=15", help="US dollars per million tokens")
    parser.add_argument("--fast", action="store_true", help="one constant answer, for measuring clients")
    parser.add_argument(
        "--batch-polls", type=int, default=1, metavar="N", help="looks until a batch has ended"
    )
    parser.add_argument("--port-file", type=Path, metavar="F", help="write the port here once it listens")
    parser.add_argument("--stats-file", type=Path, metavar="F", help="keep the counts here as JSON")
    return parser.parse_args(arguments)


def watch(teacher: Watched, *, port_file: Path | None, stats_file: Path | None) -> None:
    """Say where the teacher is, keep its files up to date until a signal comes, then say what it billed."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    last: dict[str, Any] = {}
    try:
        _say(f"export OPENAI_BASE_URL={teacher.openai_url}\nexport ANTHROPIC_BASE_URL={teacher.url}\n")
        if port_file is not None:
            _replace(port_file, f"{teacher.port}\n")
        while not caught:
            started = time.monotonic()
            if stats_file is not None:
                last = _keep(stats_file, teacher.stats(), last)
            # Counts of many bodies take long to write: no more than a twentieth of the time goes there.
            time.sleep(max(_LOOK_SECONDS, min(5.0, 20 * (time.monotonic() - started))))
        now = teacher.stats()
        if stats_file is not None:
            _keep(stats_file, now, last)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    money = f" (${now['billed_usd']:.4f})" if now["billed_usd"] else ""
    _say(f"{now['requests']} requests, {now['billed']} billed{money}, {now['rejected']} rejected\n")


def _keep(path: Path, now: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """Write the counts down if they changed; the counts."""
    if now != last:
        _replace(path, json.dumps(now) + "\n")
    return now


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _mode(text: str) -> str:
    try:
        return check_mode(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _modes(text: str) -> list[str]:
    return [_mode(part.strip()) for part in text.split(",") if part.strip()]


def _price(text: str) -> Price:
    try:
        return parse_price(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _share(text: str) -> tuple[float, float]:
    share, _, factor = text.partition(":")
    return float(share), float(factor or 30)
