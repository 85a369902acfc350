"""A stage's settings: which edition they start from where none is named, and how they are shown with their origins."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource
    from zephyrctl.cli.console import Console
    from zephyrctl.config import StageConfig
    from zephyrctl.editions.choose import Choice
    from zephyrctl.editions.resolve import Resolved


def choose_for(stage: str, init: ModelSource | None, *, machines: int = 1) -> Choice:
    """The edition that `sft` or `dpo` takes where none is named: from the model it starts from (None: the edition's
    own, so the default edition) and the GPUs of this machine, `machines` of which work together."""
    from zephyrctl.editions.choose import Start, choose
    from zephyrctl.training.footprint import read_shape
    from zephyrctl.training.hardware import this_machine

    if init is None:
        start = Start()
    else:
        made_with = init.artifact.manifest.edition if init.artifact is not None else None
        start = Start(read_shape(init.path).parameters, init.world == "sandbox", made_with)
    hardware = this_machine()
    return choose(stage, start, gpus=len(hardware.gpus) * machines, gpu_bytes=hardware.gpu_memory)


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
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "(none)"
    return str(value) if value != "" else '""'
