"""`import SRC --as KIND`: the user's own data or model as an artifact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from zephyrctl.artifacts.adopt import OnBadRow, Source, open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.models import (
    check_model_folder,
    left_out,
    model_files,
    model_from_folder,
    model_from_ref,
)
from zephyrctl.artifacts.ref import check_name, is_name, looks_like_ref
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.config import StageConfig, reads
from zephyrctl.errors import BadRow, UsageError
from zephyrctl.events import Note, Warning_
from zephyrctl.records import ROW_TYPES, Record, split_of

DEFAULT_NAMES = {
    "prompts": "prompts",
    "sft": "sft-data",
    "feedback": "feedback",
    "prefs": "prefs",
    "eval": "eval",
}
KINDS = (*DEFAULT_NAMES, "model")


class ImportConfig(StageConfig):
    """What an import is asked."""

    stage: ClassVar[str] = "import"

    source: str = reads(...)
    """The file, folder or ref that is read."""
    kind: str
    """The kind of artifact to make."""
    test_fraction: float = 0.1
    """Share of prompts held out where the source is not split yet, decided by each prompt's hash."""


def import_source(
    work: Work,
    text: str,
    kind: str,
    name: str | None = None,
    *,
    on_bad_row: OnBadRow = "fail",
    test_fraction: float = 0.1,
    note: str | None = None,
) -> StepResult:
    """An artifact of `kind` with the content of `text`; its default name is the one that the next stage looks
    for.

    Rows keep the source's splits; what is not split is split by prompt. Raises as `open_source` and
    `check_model_folder`.
    """
    if kind not in KINDS:
        raise UsageError(f"'{kind}' cannot be imported", hint="known kinds: " + ", ".join(KINDS))
    if not 0 <= test_fraction < 1:
        raise UsageError(f"a test fraction of {test_fraction} is not between 0 and 1")
    config = ImportConfig(
        source=text, kind=kind, test_fraction=test_fraction, on_bad_row=on_bad_row, out=name, note=note
    )
    if kind == "model":
        return _import_model(work, config)
    try:
        source = open_source(work.store, text, kind, on_bad_row=on_bad_row)
    except BadRow as error:
        error.hint = "mend what is named, or leave bad rows out: --on-bad-row skip"
        raise
    work.emit(Note(f"read {text} as {source.shape}"))
    step = Step(
        work,
        config,
        name=check_name(name or DEFAULT_NAMES[kind]),
        kind=kind,
        inputs=[source.input("source")],
        world=source.world,
    )
    if (done := step.done()) is not None:
        return done
    if work.dry_run:
        work.emit(Note(f"would make {step.name} (kind {kind}) of {sum(1 for _ in source.rows()):,} rows"))
        return StepResult(None, None)
    with step.open() as staging:
        for split, row in _split(source, kind, test_fraction):
            staging.write_rows(split, [row])
        staging.write_rejects(source.rejects)
        staging.extra["shape"] = source.shape
        return step.result(staging.commit())


def _split(source: Source, kind: str, test_fraction: float) -> Iterator[tuple[str, Record]]:
    assert kind in ROW_TYPES
    for _, split, row in source.rows():
        yield split or split_of(str(getattr(row, "prompt_id", "")), test_fraction), row


def _import_model(work: Work, config: ImportConfig) -> StepResult:
    text = config.source
    if text == "-":
        raise UsageError("a model cannot be read from stdin", hint="give its folder")
    folder = Path(text).expanduser()
    by_ref = looks_like_ref(text) and "/" not in text and not folder.exists()
    model = model_from_ref(work.store, text) if by_ref else model_from_folder(work.store, folder)
    check_model_folder(model.path)
    name = check_name(
        config.out or _slug(model.artifact.ref.name if model.artifact else model.path.resolve().name)
    )
    source = InputRef(role="source", ref=model.ref, digest=model.digest, kind="model")
    step = Step(work, config, name=name, kind="model", inputs=[source], world=model.world)
    if (done := step.done()) is not None:
        return done
    files = model_files(model.path)
    dropped = [n for n in left_out(model.path) if model.artifact is None and not n.startswith(".")]
    if dropped:
        work.emit(Warning_(f"left out, being no part of a model in safetensors: {', '.join(dropped[:12])}"))
    if work.dry_run:
        work.emit(Note(f"would copy {len(files)} files of {text} as {name}"))
        return StepResult(None, None)
    with step.open() as staging:
        for path in files:
            staging.copy_file(path, path.name)
        metrics = model.path / "metrics.jsonl"
        if model.artifact is not None and metrics.is_file():
            staging.copy_file(metrics, metrics.name)
        staging.counts["left_out"] = len(dropped)
        return step.result(staging.commit())


def _slug(text: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:63].removesuffix(".lock")
    return name if is_name(name) else "model"
