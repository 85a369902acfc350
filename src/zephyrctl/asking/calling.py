"""How a stage's settings become its caller: limits, budget, and what is said about the money at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zephyrctl.artifacts.step import StepResult
from zephyrctl.asking.shards import Shard
from zephyrctl.events import Calls, Emit, Event, Note, Progress
from zephyrctl.ledger.entries import Budget, Run
from zephyrctl.money import parse_price, to_uusd
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Batching, Failure
from zephyrctl.providers.calling.caller import Caller
from zephyrctl.providers.calling.retry import Retry
from zephyrctl.providers.calling.settings import CallSettings
from zephyrctl.providers.site import Site

if TYPE_CHECKING:
    from zephyrctl.artifacts.step import Step, Work
    from zephyrctl.asking.config import AskingConfig
    from zephyrctl.asking.prompts import Seed
    from zephyrctl.ledger.ledger import Ledger
    from zephyrctl.project import Project


def site_of(config: AskingConfig, project: Project) -> Site:
    """What providers must know of this stage. Raises UsageError for a price that cannot be read."""
    return Site(
        project=project,
        price=None if config.price is None else parse_price(config.price),
        may_drop=frozenset(config.may_drop),
        effort=config.effort,
        replay_only=replay_only(config),
    )


def replay_only(config: AskingConfig) -> bool:
    """Whether this run may not send anything."""
    return config.accept_partial or config.max_usd == 0


def shard_of(config: AskingConfig) -> Shard | None:
    """The part of the prompts that this process takes; None = all of them."""
    return None if config.shard is None else Shard.parse(config.shard)


def name_of(config: AskingConfig, default: str) -> str:
    """The name of the artifact to make; a shard's tells which part it is."""
    name, shard = config.out or default, shard_of(config)
    return name if shard is None else shard.name(name)


def mine(config: AskingConfig, whole: list[Seed]) -> list[Seed]:
    """Those of all prompts that this process takes."""
    shard = shard_of(config)
    return whole if shard is None else [seed for seed in whole if shard.mine(seed.row.prompt_id)]


def empty_part(config: AskingConfig, whole: int, taken: int, emit: Emit) -> StepResult | None:
    """What a part comes to that got none of the prompts: nothing to do, which is no fault; None for any other."""
    if config.shard is None or taken or not whole:
        return None
    emit(Note(f"part {config.shard} has none of the {whole} prompts: nothing to do, and nothing to merge"))
    return StepResult(None, None, plan={"shard": config.shard, "rows": 0})


def budget_of(config: AskingConfig, project: Project) -> Budget:
    """What the step and the whole project may spend; a shard has its share of both, since its ledger sees its own
    calls only."""
    step = None if config.max_usd is None else to_uusd(config.max_usd)
    whole = None if project.max_usd is None else to_uusd(project.max_usd)
    shard = shard_of(config)
    if shard is not None:
        step, whole = shard.share(step), shard.share(whole)
    parts, closable = (shard.count if shard else 1), config.stage != "eval"
    return Budget(step=step, project=whole, parts=parts, closable=closable)


def open_caller(
    config: AskingConfig,
    work: Work,
    ledger: Ledger,
    step: Step,
    *,
    replay: bool = False,
    emit: Emit | None = None,
    cap: int | None = None,
) -> Caller:
    """The caller of a step, to be used in a `with` statement.

    `replay` = it sends nothing and what is not in the ledger is a Failure with reason `unpaid`; `emit` = whom it
    tells, where that is not the stage's own; `cap` = the limit of the step, in uusd, where the settings name none.
    """
    budget = Budget() if replay else budget_of(config, work.project)
    if cap is not None and budget.step is None and not replay:
        budget = replace(budget, step=cap, agreed=False)
    settings = CallSettings(
        concurrency=config.concurrency,
        deadline=config.deadline,
        rpm=config.rpm,
        tpm=config.tpm,
        retry=Retry(max_wait=config.max_wait),
        budget=budget,
        mode=config.mode,
        in_doubt=config.in_doubt,
        redraw=config.redraw,
        replay=replay,
    )
    run = Run(step.key[:16], config.stage, step.name)
    return Caller(ledger, run=run, emit=emit or work.emit, settings=settings)


def without_progress(emit: Emit) -> Emit:
    """Passes on notes and warnings, and no progress."""

    def passed_on(event: Event) -> None:
        if not isinstance(event, Progress | Calls):
            emit(event)

    return passed_on


class Asker:
    """Asks through a caller, and counts what came back by model and purpose: which replies are there, which are
    not, and what those that are there cost at today's prices (in uusd, replayed or not; equal requests once).

    `batch` = at the price of a batch, where the model takes batches.
    """

    def __init__(self, caller: Caller, *, batch: bool = False) -> None:
        self._caller = caller
        self._batch = batch
        self._seen: set[str] = set()
        self.there: Counter[tuple[str, str]] = Counter()
        self.unpaid = 0
        self.worth = 0
        self.tokens = 0

    def __call__(self, asks: Sequence[tuple[AnyProvider, Ask]], task: str) -> list[Answer | Failure]:
        """The replies, in the order of the asks."""
        replies = self._caller.ask_all(asks, task=task)
        for (provider, ask), reply in zip(asks, replies, strict=True):
            self._count(provider, ask, reply)
        return replies

    def ask(self, provider: AnyProvider, asks: Sequence[Ask], *, task: str) -> list[Answer | Failure]:
        """The replies of one model."""
        return self([(provider, ask) for ask in asks], task)

    def _count(self, provider: AnyProvider, ask: Ask, reply: Answer | Failure) -> None:
        if isinstance(reply, Failure):
            self.unpaid += reply.reason == UNPAID
            return
        self.there[provider.label, ask.purpose] += 1
        if reply.tokens is not None and reply.key not in self._seen:
            self._seen.add(reply.key)
            self.tokens += reply.tokens.prompt + reply.tokens.completion
            batch = self._batch and isinstance(provider, Batching)
            self.worth += provider.price.cost(reply.tokens, batch=batch) if provider.price is not None else 0

    def add(self, other: Asker) -> None:
        """Take over the counts of another one."""
        self.there.update(other.there)
        self.unpaid += other.unpaid
        self.worth += other.worth
        self.tokens += other.tokens
