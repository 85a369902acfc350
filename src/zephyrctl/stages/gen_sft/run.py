"""`gen-sft`: a teacher makes dialogues worth imitating, by one of three methods."""

from __future__ import annotations

from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.asking.calling import site_of
from zephyrctl.asking.seats import check_keys
from zephyrctl.errors import UsageError
from zephyrctl.stages.gen_sft import self_instruct, ultrachat, zephyr
from zephyrctl.stages.gen_sft.config import GenSftConfig

_READ_BY = (("prompts", "--prompts", ("zephyr", "self-instruct")), ("topics", "--topics", ("ultrachat",)))
_METHODS = {"zephyr": zephyr.run, "self-instruct": self_instruct.run, "ultrachat": ultrachat.run}


def run(config: GenSftConfig, work: Work) -> StepResult:
    """The artifact `sft-data` (kind sft), made by `config.method`.

    Raises AuthError, UsageError (no prompts, no consent), RefNotFound, IntegrityError, BudgetReached, and
    StageRejected when more than `max_failures` of the replies failed.
    """
    check_keys([config.teacher], site_of(config, work.project))
    for name, flag, methods in _READ_BY:
        if getattr(config, name) and config.method not in methods:
            raise UsageError(
                f"gen-sft --method {config.method} reads no {name}",
                hint=f"{flag} is for {' and '.join(methods)}",
            )
    return _METHODS[config.method](config, work)
