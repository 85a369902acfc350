"""What must not become a pair: sources, questions of a suite, and ids that somebody flagged.

A file of flagged ids has one entry a line, or is a JSON list of entries. An entry is an id as text, or an object with
`id`, with `prompt_id`, with `completion_id`, or with `chosen_id` and `rejected_id` (the narrowest that is there
counts: the pair, then the completion, then the prompt). A text is the id of a prompt, of a completion, or of a pair
as `chosen_id+rejected_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zephyrctl.artifacts.digests import hash_file
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.errors import BadRow, IntegrityError, RefNotFound
from zephyrctl.stages.binarize.candidates import Asked

Pair = frozenset[str]
"""The ids of two completions."""

_HINT = 'an entry is an id, or an object such as {"prompt_id": …} or {"chosen_id": …, "rejected_id": …}'


@dataclass
class Barred:
    """Sources, questions and flagged ids that take no part."""

    sources: frozenset[str] = frozenset()
    questions: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    """Flagged prompts and completions."""
    pairs: frozenset[Pair] = frozenset()
    """Flagged pairs of completions, whichever way round."""
    met: set[str | Pair] = field(default_factory=set)
    """The flagged ids that were met so far."""

    def __post_init__(self) -> None:
        self._pairs_of: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            for identity in pair:
                self._pairs_of.setdefault(identity, []).append(pair)

    def meet(self, asked: Asked) -> None:
        """Notes which flagged ids this prompt has, whether or not they change anything."""
        if not self.ids and not self.pairs:
            return
        here = {asked.prompt_id, *(c.identity for c in asked.candidates)}
        self.met |= here & self.ids
        for identity in here & self._pairs_of.keys():
            self.met.update(pair for pair in self._pairs_of[identity] if pair <= here)

    def prompt(self, asked: Asked) -> tuple[Literal["flagged", "source", "in_suite"], str] | None:
        """Why the whole prompt takes no part, as reason and detail; None where it does."""
        if asked.prompt_id in self.ids:
            return "flagged", "the prompt is flagged"
        if asked.source in self.sources:
            return "source", f"prompts from {asked.source} are left out"
        if asked.question in self.questions:
            return "in_suite", "the prompt is a question of a suite, character by character"
        return None

    def pair(self, one: str, other: str) -> bool:
        """Whether two completions must not be paired."""
        return bool(self.pairs) and frozenset((one, other)) in self.pairs

    def unknown(self) -> list[str]:
        """The flagged ids that no prompt had, sorted."""
        pairs = ("+".join(sorted(pair)) for pair in self.pairs - self.met)
        return sorted([*(self.ids - self.met), *pairs])


def read_flagged(text: str) -> tuple[frozenset[str], frozenset[Pair], InputRef]:
    """The flagged ids and pairs in a file, and the file as an input of the step.

    Raises RefNotFound when it is not there, BadRow naming file and line for what is no entry.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise RefNotFound(
            f"no such file of flagged ids: {text}", hint="--drop takes a JSONL, JSON or text file"
        )
    ids: set[str] = set()
    pairs: set[Pair] = set()
    try:
        for where, entry in _entries(path, text):
            found = _flagged(where, entry)
            if isinstance(found, str):
                ids.add(found)
            else:
                pairs.add(found)
        digest = "sha256:" + hash_file(path)
    except OSError as error:
        raise IntegrityError(f"{text}: cannot be read ({error.strerror})") from error
    return frozenset(ids), frozenset(pairs), InputRef(role="drop", ref=text, digest=digest, kind="flags")


def _entries(path: Path, shown: str) -> Iterator[tuple[str, Any]]:
    """The entries of a file with their places: the items of a JSON list, else one a line."""
    try:
        body = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(f"{shown}:1", f"not UTF-8 at byte {error.start + 1}", hint="save it as UTF-8") from None
    if body.lstrip().startswith("["):
        try:
            listed = json.loads(body)
        except ValueError as error:
            raise BadRow(f"{shown}:1", f"not a JSON list: {error}", hint=_HINT) from None
        yield from ((f"{shown}:{number}", item) for number, item in enumerate(listed, start=1))
        return
    for number, line in enumerate(body.split("\n"), start=1):
        where, content = f"{shown}:{number}", line.strip()
        if not content:
            continue
        if not content.startswith(("{", '"')):
            yield where, content
            continue
        try:
            yield where, json.loads(content)
        except ValueError as error:
            raise BadRow(where, f"not JSON: {error}", hint=_HINT) from None


def _flagged(where: str, entry: Any) -> str | Pair:
    if isinstance(entry, dict):
        both = [entry.get(name) for name in ("chosen_id", "rejected_id")]
        if all(both):
            return frozenset(_identity(where, one) for one in both)
        entry = next((entry[name] for name in ("completion_id", "prompt_id", "id") if entry.get(name)), None)
    identity = _identity(where, entry)
    one, plus, other = identity.partition("+")
    return frozenset((_identity(where, one), _identity(where, other))) if plus else identity


def _identity(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow(where, "no id of a prompt, a completion or a pair", hint=_HINT)
    return value.strip()
