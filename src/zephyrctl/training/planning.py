"""A run planned from token lengths alone: no data, no weights, where wanted for machines that are elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zephyrctl.artifacts.store import Store
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.events import Emit
from zephyrctl.modelspec import parse_model
from zephyrctl.training.footprint import Shape, read_shape
from zephyrctl.training.hardware import parse_hardware, this_machine
from zephyrctl.training.known_shapes import known_shape
from zephyrctl.training.lengths import measure, read_lengths
from zephyrctl.training.locate import locate_model
from zephyrctl.training.outlook import Assumptions, look_ahead
from zephyrctl.training.outlook_text import document, events
from zephyrctl.training.settings import TrainingConfig, need_length


def plan_from_lengths(
    config: TrainingConfig,
    lengths: Path,
    store: Store,
    emit: Emit,
    *,
    hardware: str | None = None,
    assumptions: Assumptions | None = None,
) -> dict[str, Any]:
    """Emits the tables of the run, and warnings for what is missing, and returns its document.

    `hardware` describes machines (`16xA100-80GB`); None = this one. What is missing is part of the outcome and no
    error. Raises UsageError (no model named, settings that contradict each other), RefNotFound (no such file, a model
    whose shape is not known) and IntegrityError (a file that holds no lengths).
    """
    if config.init is None:
        raise UsageError(
            "no model to plan for",
            hint="--init FOLDER or ORG/NAME, or an edition that names one: zephyrctl edition ls",
        )
    shape = shape_to_plan(config.init, store)
    need_length(config.max_length, shape.context)
    look = look_ahead(
        config,
        shape,
        this_machine() if hardware is None else parse_hardware(hardware),
        measure(read_lengths(lengths), config),
        store=store.root,
        assumptions=assumptions or Assumptions(),
    )
    for event in events(look):
        emit(event)
    return document(look)


def shape_to_plan(init: str, store: Store) -> Shape:
    """The shape of the model that `init` names: from its `config.json` where one is at hand (weights are not needed),
    for a name of the Hub else from the table of known models. Raises as `locate_model`, and RefNotFound."""
    spec = parse_model(init)
    if spec.where == "folder" and Path(spec.name).expanduser().is_dir():
        return read_shape(Path(spec.name).expanduser())
    if spec.where == "hub":
        try:
            return known_shape(spec.name)
        except RefNotFound:
            pass
    return read_shape(locate_model(store, spec).path)
