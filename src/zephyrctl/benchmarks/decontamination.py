"""Prompts against the evaluation suites the user has: what is found before money is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.asking.prompts import Seed
from zephyrctl.benchmarks.suites import Suite, load_suites
from zephyrctl.config import canonical
from zephyrctl.curation import contamination
from zephyrctl.curation.contamination import Index, SuiteText
from zephyrctl.errors import UsageError
from zephyrctl.events import Emit, Note, Warning_, silent
from zephyrctl.project import Project
from zephyrctl.records import Message, prompt_id

DEFAULT_FOLDER = Path("suites")
"""Where suites are looked for when neither the command nor the project file names a place."""
REASON = "contaminated"
_LISTED = 5
_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Hit:
    """An item of a suite that a prompt overlaps with. `how`: exact, normalised or 13-gram."""

    suite: str
    item: str
    how: str
    overlap: str

    def __str__(self) -> str:
        return f"{self.suite}/{self.item} ({self.how}: {self.overlap})"


class Decontaminator:
    """The suites, ready to be compared with; counts what it was shown. Used by one thread at a time."""

    def __init__(self, suites: Sequence[Suite], emit: Emit = silent) -> None:
        self._suites = list(suites)
        self._emit = emit
        self._index = Index(_texts(self._suites))
        self._compared = self._dropped = 0
        self._by_suite: Counter[str] = Counter()
        self._by_how: Counter[str] = Counter()
        self._examples: list[dict[str, str]] = []

    def inputs(self) -> list[InputRef]:
        """The suites as inputs of the step (role `suite`); none where there is nothing to compare with."""
        return [InputRef(role="suite", ref=s.name, digest=s.digest, kind="suite") for s in self._suites]

    def hit(self, messages: Sequence[Message], *, drop: bool = False) -> Hit | None:
        """The first overlap of what the user and the system say with any item; counts it.

        `drop` says whether the caller drops what is hit, for the count in `record`.
        """
        found = self._compare([m.content for m in messages if m.role != "assistant"])
        if found is not None:
            self._count(prompt_id(messages), found, drop)
        return found

    def sift(self, seeds: Sequence[Seed], *, drop: bool) -> tuple[list[Seed], list[dict[str, str]]]:
        """The prompts to go on with, and those dropped as rejects (reason `contaminated`).

        A prompt's follow-up turns are compared as well. With `drop` False all go on. The first hits are listed
        either way.
        """
        if not self._suites:
            return list(seeds), []
        kept: list[Seed] = []
        hits: list[tuple[Seed, Hit]] = []
        for seed in seeds:
            said = [m.content for m in seed.row.prompt if m.role != "assistant"] + list(seed.row.follow_ups)
            found = self._compare(said)
            if found is not None:
                self._count(seed.row.prompt_id, found, drop)
                hits.append((seed, found))
            if found is None or not drop:
                kept.append(seed)
        if hits:
            self._emit(Warning_(_listing(hits, len(seeds), drop)))
        return kept, [_reject(seed, found) for seed, found in hits] if drop else []

    def record(self) -> dict[str, Any]:
        """What was compared and found, for the manifest (`extra["decontamination"]`)."""
        return {
            "suites": [{"name": s.name, "digest": s.digest, "items": len(s.items)} for s in self._suites],
            "method": {
                "how": ["exact", "normalised", "13-gram"],
                "common": contamination.COMMON,
                "common_13_grams": self._index.common,
            },
            "compared": self._compared,
            "hits": self._by_how.total(),
            "dropped": self._dropped,
            "by_suite": dict(sorted(self._by_suite.items())),
            "by_how": dict(sorted(self._by_how.items())),
            "examples": list(self._examples),
        }

    def _compare(self, said: Sequence[str]) -> Hit | None:
        if not self._suites:
            return None
        self._compared += 1
        found = self._index.find(said)
        return None if found is None else Hit(found.suite, found.item, found.how, found.overlap)

    def _count(self, identity: str, hit: Hit, drop: bool) -> None:
        self._by_suite[hit.suite] += 1
        self._by_how[hit.how] += 1
        self._dropped += drop
        if len(self._examples) < _EXAMPLES:
            item = f"{hit.suite}/{hit.item}"
            self._examples.append(
                {"prompt_id": identity, "item": item, "how": hit.how, "overlap": hit.overlap}
            )


def open_decontaminator(named: Sequence[str], project: Project, emit: Emit) -> Decontaminator:
    """The suites that `named` paths hold, else those in the project's `suites` folder, else those in ./suites,
    else none, which is said.

    Raises RefNotFound for a path that is not there, UsageError for a file that is no suite.
    """
    places, default = list(named), False
    if not places and project.suites:
        places = [project.suites]
    elif not places and DEFAULT_FOLDER.is_dir():
        places, default = [str(DEFAULT_FOLDER)], True
    if not places:
        emit(Note(_NONE))
        return Decontaminator([], emit)
    suites = load_suites([Path(place).expanduser() for place in places], emit)
    if not suites and not default:
        raise UsageError(
            f"{', '.join(places)}: no evaluation suites there",
            hint="question.jsonl of MT-Bench, alpaca_eval.json, or any JSONL or Parquet with a column "
            "prompt, question, instruction, text, turns or messages",
        )
    if not suites:
        emit(Note(_NONE))
        return Decontaminator([], emit)
    shown = ", ".join(f"{suite.name} ({len(suite.items):,})" for suite in suites)
    emit(Note(f"prompts are compared with the evaluation suites in {', '.join(places)}: {shown}"))
    return Decontaminator(suites, emit)


_NONE = (
    "there are no evaluation suites to compare prompts with, so none is found to be contaminated; "
    "put their files into a folder and name it in zephyrctl.yaml: suites: DIR"
)


def _texts(suites: Sequence[Suite]) -> list[SuiteText]:
    found = []
    for suite in suites:
        for item in suite.items:
            found += [SuiteText(suite.name, item.id, text) for text in item.texts]
            found += [SuiteText(suite.name, item.id, text, whole=False) for text in item.options]
    return found


def _reject(seed: Seed, hit: Hit) -> dict[str, str]:
    row = canonical(seed.row.model_dump(mode="json"))
    return {"where": seed.where, "reason": REASON, "detail": str(hit), "row": row}


def _listing(hits: Sequence[tuple[Seed, Hit]], total: int, drop: bool) -> str:
    lines = [f"\n  {seed.where}: {hit}" for seed, hit in hits[:_LISTED]]
    more = f"\n  … and {len(hits) - _LISTED:,} more" if len(hits) > _LISTED else ""
    fate = "dropped" if drop else "kept, as asked"
    return (
        f"{len(hits):,} of {total:,} prompts overlap with evaluation suites and are {fate}:"
        + "".join(lines)
        + more
    )
