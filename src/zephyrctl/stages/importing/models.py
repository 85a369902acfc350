"""A model of the user's own as an artifact: a folder, a ref, or a repository of the Hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zephyrctl.artifacts.hub import PREFIX
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.models import (
    ModelSource,
    check_model_folder,
    left_out,
    model_from_folder,
    model_from_ref,
    model_names,
)
from zephyrctl.artifacts.ref import as_name, check_name, looks_like_ref
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import UsageError
from zephyrctl.events import Note, Warning_
from zephyrctl.stages.importing.config import ImportConfig


def import_model(config: ImportConfig, work: Work) -> StepResult:
    """A copy of the model's own files. Raises as `check_model_folder`, and UsageError for stdin."""
    text = config.source
    model = _find(work.store, text)
    check_model_folder(model.path)
    named = text if text.startswith(PREFIX) else model.path.resolve().name
    name = check_name(config.out or _slug(model.artifact.ref.name if model.artifact else named))
    source = InputRef(role="source", ref=model.ref, digest=model.digest, kind="model")
    step = Step(work, config, name=name, kind="model", inputs=[source], world=model.world)
    if (done := step.done()) is not None:
        return done
    files = model_names(model.path)
    dropped = [n for n in left_out(model.path) if model.artifact is None and not n.startswith(".")]
    if dropped:
        work.emit(Warning_(f"left out, being no part of a model in safetensors: {', '.join(dropped[:12])}"))
    if work.dry_run:
        work.emit(Note(f"would copy {len(files)} files of {text} as {name}"))
        return StepResult(None, None)
    with step.open() as staging:
        for name in files:
            staging.copy_file(model.path / name, name)
        metrics = model.path / "metrics.jsonl"
        if model.artifact is not None and metrics.is_file():
            staging.copy_file(metrics, metrics.name)
        staging.counts["left_out"] = len(dropped)
        return step.result(staging.commit())


def _find(store: Store, text: str) -> ModelSource:
    if text == "-":
        raise UsageError("a model cannot be read from stdin", hint="give its folder")
    if text.startswith(PREFIX):
        from zephyrctl.training.locate import locate_model

        # a snapshot's folder has the commit as its name; the cache's path would say nothing elsewhere
        found = locate_model(store, text)
        repo = text.removeprefix(PREFIX).partition("@")[0]
        return dataclasses.replace(found, ref=f"{PREFIX}{repo}@{found.path.name}")
    folder = Path(text).expanduser()
    by_ref = looks_like_ref(text) and "/" not in text and not folder.exists()
    return model_from_ref(store, text) if by_ref else model_from_folder(store, folder)


def _slug(text: str) -> str:
    last = text.partition("@")[0].rsplit("/", 1)[-1] if text.startswith(PREFIX) else text
    return as_name(last, "model")
