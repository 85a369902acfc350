"""Filters one after the other, counted. Off unless asked for: `--filter NAME[=SETTING]`, in the order given."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.config import digest_of
from zephyrctl.curation import cutoff, duplicates, language, lengths, phrases, truecase
from zephyrctl.curation.base import Dialogue, Dropped, Filter
from zephyrctl.curation.lengths import TokenCounter
from zephyrctl.errors import UsageError
from zephyrctl.records import Message

FILTERS: dict[str, str] = {
    "truecase": "restore lost capitals by the corpus's majority casing, never in code",
    "persona": "drop replies about the assistant's own person; =FILE adds phrases",
    "refusals": "drop refusals; =FILE adds phrases",
    "exact-duplicates": "drop dialogues that an earlier row repeats; =prompt compares prompts alone",
    "near-duplicates": "=0.8: drop dialogues as similar as that to an earlier row (MinHash)",
    "language": "=en or =en,de: keep these languages",
    "max-tokens": "=2048: drop longer dialogues, in tokens of --tokenizer",
    "min-tokens": "=8: drop shorter dialogues, in tokens of --tokenizer",
    "split-long": "=2048: split longer dialogues at turn pairs, in tokens of --tokenizer",
    "cut-off": "drop dialogues with an answer that was cut off",
}
"""All filters, with what they do."""

_TOKENS = ("max-tokens", "min-tokens", "split-long")


@dataclass
class _Counted:
    """A filter and what it did: dialogues seen = kept + dropped; `changed` and `split` are among those kept."""

    filter: Filter
    version: object
    seen: int = 0
    changed: int = 0
    split: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


class Pipeline:
    """Filters in the order asked for; an empty one passes everything. Used by one thread, rows in order."""

    def __init__(self, filters: Sequence[_Counted]) -> None:
        self._filters = list(filters)

    @property
    def learns(self) -> bool:
        """Whether a filter must see the whole corpus before the first dialogue is filtered."""
        return any(one.filter.learns for one in self._filters)

    def learn(self, dialogues: Iterable[Dialogue]) -> None:
        """Shows the corpus to the filters that learn."""
        learners = [one.filter for one in self._filters if one.filter.learns]
        for dialogue in dialogues if learners else ():
            for learner in learners:
                learner.learn(dialogue)

    def apply(self, dialogue: Dialogue) -> list[list[Message]] | Dropped:
        """What becomes of a dialogue after all filters: itself, changed or in parts, or why it is dropped.

        Of a dialogue in parts those that a later filter drops are left out; when none is left, the last reason counts.
        """
        parts: list[list[Message]] = [list(dialogue)]
        for one in self._filters:
            passed: list[list[Message]] = []
            reason = Dropped("", "")
            for part in parts:
                found = _apply(one, part)
                if isinstance(found, Dropped):
                    reason = found
                else:
                    passed += found
            if not passed:
                return reason
            parts = passed
        return parts

    def counts(self) -> dict[str, Any]:
        """For each filter, by name: seen, kept, changed, split, dropped by reason; and turn pairs left out of what was
        split."""
        return {
            one.filter.name: {
                "seen": one.seen,
                "kept": one.seen - one.dropped.total(),
                "changed": one.changed,
                "split": one.split,
                "dropped": dict(sorted(one.dropped.items())),
                **(
                    {"pairs_left_out": one.filter.left_out}
                    if isinstance(one.filter, lengths.SplitLong)
                    else {}
                ),
            }
            for one in self._filters
        }

    def sentences(self) -> list[str]:
        """What each filter did, in words."""
        told = []
        for one in self._filters:
            dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(one.dropped.items())) or "none"
            more = f", {one.changed:,} changed" if one.changed else ""
            more += f", {one.split:,} split" if one.split else ""
            told.append(f"filter {one.filter.name}: {one.seen:,} seen{more}; dropped: {dropped}")
        return told

    def inputs(self) -> list[InputRef]:
        """What enters the step key besides the names: versions of the algorithms, word lists, the tokenizer."""
        return [
            InputRef(
                role="filter",
                ref=one.filter.name,
                digest=digest_of([one.filter.name, one.version]),
                kind="filter",
            )
            for one in self._filters
        ]


def _apply(one: _Counted, dialogue: list[Message]) -> list[list[Message]] | Dropped:
    one.seen += 1
    found = one.filter.apply(dialogue)
    if isinstance(found, Dropped):
        one.dropped[found.reason] += 1
    elif len(found) > 1:
        one.split += 1
    elif found[0] != dialogue:
        one.changed += 1
    return found


def make_pipeline(
    specs: Sequence[str], *, count: TokenCounter | None = None, place: str = "--filter"
) -> Pipeline:
    """The filters that `specs` name; `count` counts tokens, `place` says in messages where they were asked for.

    Raises UsageError for an unknown filter or a setting that cannot be read, MissingExtra for a package that is not
    installed, RefNotFound for a list of phrases that is not there.
    """
    return Pipeline([_make(spec, count, place) for spec in specs])


def _make(spec: str, count: TokenCounter | None, place: str) -> _Counted:
    name, _, setting = spec.partition("=")
    if name not in FILTERS:
        near = difflib.get_close_matches(name, FILTERS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "filters: " + ", ".join(FILTERS)
        raise UsageError(f"{place} {spec}: there is no filter '{name}'", hint=hint)
    if name in _TOKENS:
        if count is None:
            raise UsageError(
                f"{place} {spec}: whose tokens?", hint="--tokenizer MODEL names the target model"
            )
        limit = _number(spec, setting, place, int, lambda n: n >= 1, "a whole number of tokens")
        version = [lengths.VERSION, count.digest]
        if name == "split-long":
            return _Counted(lengths.SplitLong(limit, count), version)
        return _Counted(lengths.TokenLimit(name, limit, count), version)
    if name in ("persona", "refusals"):
        made = phrases.Phrases(name, setting or None)
        return _Counted(made, made.digest)
    if name == "exact-duplicates":
        if setting not in ("", "prompt"):
            raise UsageError(f"{place} {spec}: expected nothing or =prompt")
        return _Counted(duplicates.ExactDuplicates(setting == "prompt"), duplicates.VERSION)
    if name == "near-duplicates":
        share = _number(spec, setting, place, float, lambda x: 0 < x < 1, "a similarity between 0 and 1")
        return _Counted(duplicates.NearDuplicates(share), duplicates.VERSION)
    if name == "language":
        return _Counted(language.Language(setting), language.VERSION)
    if setting:
        raise UsageError(f"{place} {spec}: the filter '{name}' takes no setting")
    return (
        _Counted(truecase.Truecase(), truecase.VERSION)
        if name == "truecase"
        else _Counted(cutoff.CutOff(), cutoff.VERSION)
    )


def _number(
    spec: str, setting: str, place: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], what: str
) -> Any:
    try:
        value = kind(setting)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise UsageError(
            f"{place} {spec}: expected {what}, such as {spec.partition('=')[0]}={_EXAMPLES[kind]}"
        )
    return value


_EXAMPLES: dict[Any, str] = {int: "2048", float: "0.8"}
