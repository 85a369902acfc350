"""A stage's settings: which edition they start from where none is named, and how they are shown with their origins."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zephyrctl.artifacts.store import Store
    from zephyrctl.cli.console import Console
    from zephyrctl.config import StageConfig
    from zephyrctl.editions.choose import Choice, Start
    from zephyrctl.editions.resolve import Resolved


def start_of(init: str | None, store: Store, *, planned: bool = False) -> Start:
    """What is known of the model that a stage starts from before any of it is loaded; None: the edition's own.

    Of a model of the Hub only the size is looked up, and nothing of one that cannot be reached. `planned`: a run that
    is planned from lengths alone, for which the sizes in `config.json` will do. Raises as `locate_model`.
    """
    from zephyrctl.artifacts.bundle import offline_dir
    from zephyrctl.editions.choose import Start
    from zephyrctl.modelspec import parse_model
    from zephyrctl.training.footprint import read_shape
    from zephyrctl.training.locate import locate_model
    from zephyrctl.training.planning import shape_to_plan

    if init is None:
        return Start()
    spec = parse_model(init)
    if spec.where == "hub" and offline_dir() is None:
        return Start(_size_on_the_hub(spec.name))
    if planned and foreign_folder(init):
        return Start(shape_to_plan(init, store).parameters)
    source = locate_model(store, spec)
    made_with = source.artifact.manifest.edition if source.artifact is not None else None
    return Start(read_shape(source.path).parameters, source.world == "sandbox", made_with)


def foreign_folder(init: str) -> bool:
    """Whether a model's name is a folder that zephyrctl did not make, so that all there is to know is its sizes."""
    from zephyrctl.modelspec import parse_model

    spec = parse_model(init)
    folder = Path(spec.name).expanduser()
    return spec.where == "folder" and folder.is_dir() and not (folder / "manifest.json").exists()


def choose_for(stage: str, start: Start, *, machines: int = 1, hardware: str | None = None) -> Choice:
    """The edition that `sft` or `dpo` takes where none is named: from the model it starts from and the GPUs of this
    machine, `machines` of which work together; or those that `hardware` describes (`16xA100-80GB`)."""
    from zephyrctl.editions.choose import choose
    from zephyrctl.training.hardware import parse_hardware, this_machine

    if hardware is not None:
        described = parse_hardware(hardware)
        return choose(stage, start, gpus=len(described.gpus), gpu_bytes=described.gpu_memory)
    here = this_machine()
    return choose(stage, start, gpus=len(here.gpus) * machines, gpu_bytes=here.gpu_memory)


def _size_on_the_hub(name: str) -> int | None:
    """Parameters of a model of the Hub: from the table of known shapes, else from its `config.json` there."""
    from zephyrctl.errors import RefNotFound
    from zephyrctl.training.known_shapes import known_shape
    from zephyrctl.training.locate import hub_shape

    try:
        return known_shape(name).parameters
    except RefNotFound:
        shape = hub_shape(name)
    return None if shape is None else shape.parameters


def stage_config(stage: str) -> type[StageConfig]:
    """The config class of a stage, imported without the stage itself."""
    room = import_module(f"zephyrctl.stages.{stage.replace('-', '_')}.config")
    name = "".join(word.title() for word in stage.split("-")) + "Config"
    config_class: type[StageConfig] = getattr(room, name)
    return config_class


def show_settled(console: Console, settled: Resolved) -> None:
    """Print a stage's settings: field, value, where it comes from, and whether it changes the result."""
    from zephyrctl.cli.console import plain_table

    config = settled.config
    values = config.model_dump(mode="json")
    roles = {name: role for role in ("input", "runtime") for name in config.fields_with_role(role)}
    rows = tuple(
        (name, shown(value), settled.origins[name], "no" if roles.get(name) == "runtime" else "yes")
        for name, value in values.items()
    )
    document = {
        "stage": config.stage,
        "edition": settled.label,
        "settings": {
            name: {"value": value, "from": settled.origins[name], "role": roles.get(name, "identity")}
            for name, value in values.items()
        },
    }
    text = plain_table(("setting", "value", "from", "changes the result"), rows)
    console.result(f"{config.stage} with {settled.label}\n\n{text}", document)


def shown(value: Any) -> str:
    """A setting's value as one cell; None is a dash, an empty text two quotes."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "(none)"
    return str(value) if value != "" else '""'
