"""What dialogues are about: the topics that ship with the package, or a list of the user's own."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from zephyrctl.errors import IntegrityError, RefNotFound, UsageError

FILE_NAME = "topics.txt"
MAX_CHARACTERS = 200
"""A longer line is no topic but a text that got into the file by mistake."""


def topics() -> list[str]:
    """The topics that ship with the package, in their order."""
    return list(_shipped())


@cache
def _shipped() -> tuple[str, ...]:
    raw = files("zephyrctl.asking").joinpath(FILE_NAME).read_bytes()
    return tuple(parse_topics(raw, FILE_NAME))


def read_topics(path: Path) -> list[str]:
    """The topics of a text file: one a line; blank lines and lines that begin with # are left out.

    Raises RefNotFound, UsageError for a line that is no topic or stands there twice, IntegrityError for a line
    that is not UTF-8; each names file and line.
    """
    if not path.is_file():
        raise RefNotFound(f"no such file: {path}", hint="a text file with one topic a line")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_topics(raw, str(path))


def parse_topics(raw: bytes, shown: str) -> list[str]:
    """The topics in the bytes of a file that messages call `shown`. Raises as `read_topics` does."""
    found: dict[str, int] = {}
    taken: list[str] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{shown}:{number}"
        try:
            topic = " ".join(line.decode("utf-8").split())
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{where}: not UTF-8 at byte {error.start + 1} of the line") from None
        if not topic or topic.startswith("#"):
            continue
        if "\0" in topic:
            raise UsageError(f"{where}: a NUL character", hint="topics are plain text, one a line")
        if len(topic) > MAX_CHARACTERS:
            raise UsageError(
                f"{where}: {len(topic)} characters, more than the {MAX_CHARACTERS} that a topic may have",
                hint="one topic a line, a few words each",
            )
        before = found.setdefault(topic.casefold(), number)
        if before != number:
            raise UsageError(
                f"{where}: '{topic}' stands in line {before} already", hint="name each topic once"
            )
        taken.append(topic)
    if not taken:
        raise UsageError(f"{shown}: no topics", hint="one topic a line; lines with # are left out")
    return taken
