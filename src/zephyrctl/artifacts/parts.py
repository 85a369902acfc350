"""The parts of a step that was cut up (`--shard 3/8`), and how they become one version again.

A part holds, beside its rows, `shard.jsonl`: a header and, for every prompt it took, the prompt's
position in the whole. Read side by side in the order of positions, the parts give what one process would have
made, to the byte.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import Manifest
from zephyrctl.artifacts.step import PARTIAL, Step, StepResult, Work, digests_by_role
from zephyrctl.artifacts.writer import Staging
from zephyrctl.config import StageConfig, canonical, step_key
from zephyrctl.errors import IntegrityError, UsageError

FILE = "shard.jsonl"
_COMPUTED = ("rows", "splits", "rejects", "bad_rows", PARTIAL, "finished", "of")
_OTHER_VERSION = "make the parts with one version of zephyrctl, and merge them with that version"


class PartFile:
    """Writes `shard.jsonl` while a part is being made."""

    def __init__(self, file: durable.NewFile) -> None:
        self._file = file

    def add(self, position: int, **entry: Any) -> None:
        """Notes what became of the prompt at `position` of the whole; positions must rise."""
        self.write({"position": position, **entry})

    def write(self, body: Mapping[str, Any]) -> None:
        """One line, in ASCII, so that any text can be read back as it was."""
        self._file.write(json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n")


@contextlib.contextmanager
def part_file(
    staging: Staging, shard: str | None, *, whole: int, mine: int, bad_rows: int, about: str = ""
) -> Iterator[PartFile | None]:
    """The notes of one part, which has `mine` of `whole` prompts; None for a step that is not cut up.

    `about` is what the stage wants to know when it merges. The block ends before the staging is committed.
    """
    if shard is None:
        yield None
        return
    file = durable.NewFile(staging.path / FILE)
    try:
        notes = PartFile(file)
        notes.write({"shard": shard, "whole": whole, "mine": mine, "bad_rows": bad_rows, "about": about})
        yield notes
        file.close()
    finally:
        file.abandon()


@dataclass(frozen=True)
class Part:
    """One part of a step, as its artifact: part `index` of `count`, with `mine` of `whole` prompts."""

    artifact: Artifact
    index: int
    count: int
    whole: int
    mine: int
    bad_rows: int
    about: str

    def entries(self) -> Iterator[tuple[int, Part, dict[str, Any]]]:
        """What became of each of its prompts, with its position, in the order of positions."""
        found = _lines(self.artifact)
        next(found)
        for entry in found:
            yield int(entry["position"]), self, entry


def is_part(artifact: Artifact) -> bool:
    """Whether an artifact is one part of a step that was cut up."""
    return artifact.manifest.config.get("shard") is not None


def any_partial(parts: Sequence[Part]) -> bool:
    """Whether a part was closed before all of its prompts were finished."""
    return any(part.artifact.manifest.counts.get(PARTIAL) for part in parts)


def parts_of(
    artifacts: Sequence[Artifact], config_class: type[StageConfig]
) -> tuple[list[Part], StageConfig]:
    """The parts of one step, in order, and the settings of the whole.

    Raises UsageError naming the parts that are missing, there twice, or of another step; IntegrityError for one
    that is damaged.
    """
    parts = sorted((_part(artifact) for artifact in artifacts), key=lambda p: (p.index, str(p.artifact.ref)))
    wholes = [_whole(part.artifact, config_class) for part in parts]
    first, config = parts[0], wholes[0]
    for part, other in zip(parts[1:], wholes[1:], strict=True):
        differs = _difference(first, config, part, other)
        if differs:
            raise UsageError(
                f"{part.artifact.ref} is not a part of the same step as {first.artifact.ref}: {differs}",
                hint="give the parts of one step only",
            )
    for part, following in itertools.pairwise(parts):
        if part.index == following.index:
            raise UsageError(
                f"part {part.index}/{part.count} is there twice: {part.artifact.ref}, {following.artifact.ref}",
                hint="give one version of each part",
            )
    missing = sorted(set(range(1, first.count + 1)) - {part.index for part in parts})
    # A part that got no prompt at all has no artifact, and nothing of it is missed.
    if missing and sum(part.mine for part in parts) < first.whole:
        named = ", ".join(f"{index}/{first.count}" for index in missing)
        raise UsageError(
            f"parts are missing: {named}",
            hint=f"run the same {config.stage} command with --shard {named}; a part that says that it has no prompts "
            "makes no artifact and is not needed",
        )
    return parts, config


def interleaved(parts: Sequence[Part]) -> Iterator[tuple[Part, dict[str, Any]]]:
    """What became of each prompt of the whole, in the order of positions, with the part that had it.

    Raises IntegrityError when two parts say they had the same prompt.
    """
    last = -1
    merged = heapq.merge(*(part.entries() for part in parts), key=lambda found: found[0])
    for position, part, entry in merged:
        if position <= last:
            raise IntegrityError(
                f"{part.artifact.ref}: position {position} is not in its place", hint=_OTHER_VERSION
            )
        last = position
        yield part, entry


def merge_parts(
    work: Work,
    parts: Sequence[Part],
    config: StageConfig,
    fill: Callable[[Staging, Sequence[Part]], None],
) -> StepResult:
    """The version that one process would have made, written by `fill` from the parts.

    It has the step key of the whole, so that the same command without `--shard` finds it done. Teachers are summed.
    """
    first = parts[0].artifact.manifest
    work = replace(work, edition=first.edition)
    name = config.out or _whole_name(first.name, parts[0])
    step = Step(work, config, name=name, kind=first.kind, inputs=first.inputs, world=first.world)
    done = step.done()
    if done is not None:
        return done
    with step.open() as staging:
        fill(staging, parts)
        manifests = [part.artifact.manifest for part in parts]
        staging.teachers.extend(summed([m.teachers for m in manifests]))
        staging.templates.update(first.templates)
        staging.extra["parts"] = [
            {
                "ref": str(p.artifact.ref),
                "digest": p.artifact.digest,
                "step_key": p.artifact.manifest.step_key,
            }
            for p in parts
        ]
        return step.result(staging.commit())


def write_in_order(staging: Staging, parts: Sequence[Part]) -> None:
    """Writes the rows and rejects of all parts in the order of the whole; counts are added up.

    For stages of which every prompt gives one row (`kept` names its split) or one reject, whatever the others give.
    """
    rows = {
        (part.index, split): (row for _, _, row in part.artifact.rows(split))
        for part in parts
        for split in part.artifact.splits()
    }
    rejects = {part.index: part.artifact.rejects() for part in parts}
    for part in parts:
        shared = [next(rejects[part.index]) for _ in range(part.bad_rows)]
        if part is parts[0]:
            staging.write_rejects(shared)
    for part, entry in interleaved(parts):
        if "kept" in entry:
            staging.write_rows(entry["kept"], [next(rows[part.index, entry["kept"]])])
        else:
            staging.write_rejects([next(rejects[part.index])])
    counts = [_own_counts(part.artifact.manifest) for part in parts]
    staging.counts.update({**_total(counts), "bad_rows": parts[0].bad_rows})


def summed(teachers: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The teachers of several manifests as one list: what was counted is added up for each model.

    An amount that one of them does not know (None) is not known in the sum.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in (entry for each in teachers for entry in each):
        who = canonical([entry.get(name) for name in ("role", "provider", "model", "origin")])
        found[who] = _added(found[who], entry) if who in found else dict(entry)
    return list(found.values())


def _lines(artifact: Artifact) -> Iterator[dict[str, Any]]:
    if all(entry.path != FILE for entry in artifact.manifest.files):
        raise UsageError(f"{artifact.ref} has no {FILE}, so it is no part of anything", hint=_OTHER_VERSION)
    artifact.check()
    with (artifact.path / FILE).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _part(artifact: Artifact) -> Part:
    header = next(_lines(artifact))
    index, count = str(header["shard"]).split("/")
    return Part(
        artifact, int(index), int(count), header["whole"], header["mine"], header["bad_rows"], header["about"]
    )


def _whole(artifact: Artifact, config_class: type[StageConfig]) -> StageConfig:
    """The settings of the step that `artifact` is a part of, without the cut."""
    manifest = artifact.manifest
    with contextlib.suppress(ValidationError):
        config = config_class.model_validate(manifest.config)
        if step_key(config, digests_by_role(manifest.inputs)) == manifest.step_key:
            return config.model_copy(update={"shard": None, "out": None})
    raise UsageError(f"{artifact.ref} was made by another version of zephyrctl", hint=_OTHER_VERSION)


def _difference(first: Part, config: StageConfig, part: Part, other: StageConfig) -> str:
    """What tells two parts of different steps apart, in words; empty for parts of one step."""
    one, two = config.identity(), other.identity()
    for name in one:
        if one[name] != two[name]:
            return f"{name} is {two[name]!r:.60}, not {one[name]!r:.60}"
    here = digests_by_role(first.artifact.manifest.inputs)
    there = digests_by_role(part.artifact.manifest.inputs)
    for role in here.keys() | there.keys():
        if here.get(role) != there.get(role):
            return f"its {role.partition('.')[0]} have another content"
    if (first.count, first.whole) != (part.count, part.whole):
        return f"it is one of {part.count} parts, not of {first.count}"
    return ""


def _whole_name(name: str, part: Part) -> str:
    return name.removesuffix(f".shard-{part.index}-of-{part.count}")


def _own_counts(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest.counts.items() if name not in _COMPUTED}


def _total(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for each in counts:
        total = _added(total, each)
    return total


def _added(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: _sum(one[name], two[name]) for name in one if name in two}
    return {**one, **two, **both}


def _sum(one: Any, two: Any) -> Any:
    if isinstance(one, dict) and isinstance(two, dict):
        return _added(one, two)
    if isinstance(one, list) and isinstance(two, list):
        return one + [item for item in two if item not in one]
    if isinstance(one, int | float) and isinstance(two, int | float):
        return one + two
    return None if one is None or two is None else one
