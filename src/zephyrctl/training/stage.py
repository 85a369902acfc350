"""What `sft` and `dpo` share between their settings and a committed model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.artifacts.adopt import Source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.writer import Staging
from zephyrctl.chat.render import template_digest
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.errors import RefNotFound, StageRejected, UsageError
from zephyrctl.events import Emit, Event, Note, Table, Warning_
from zephyrctl.libraries import quiet
from zephyrctl.records import split_of
from zephyrctl.training.footprint import Shape, check_trainable
from zephyrctl.training.journal import METRICS, TIMING, Journal
from zephyrctl.training.locate import locate_model
from zephyrctl.training.loop import Job, run
from zephyrctl.training.model import need_training_packages, require_change, save_model
from zephyrctl.training.plan import FEW_STEPS, Plan, make_plan
from zephyrctl.training.settings import TrainingConfig, need_length
from zephyrctl.training.tokens import Tokens

ToTokens = Callable[[Iterable[tuple[str, Any]], Any], Tokens]


@dataclass(frozen=True)
class Method:
    """What sets one way of training apart. `to_tokens(rows, tokenizer)` renders and cuts; `beta` None = no
    reference."""

    task: str
    data_kind: str
    default_data: str
    made_by: str
    """The command that makes the default data."""
    to_tokens: ToTokens
    beta: float | None = None
    loss: str = "sigmoid"
    pack: Callable[[Sequence[Any]], list[Any]] | None = None
    """Puts the training rows together into longer ones, where that is wanted."""

    @property
    def reference(self) -> bool:
        """Whether the starting model also stays as the reference."""
        return self.beta is not None


@dataclass
class Data:
    """Token rows of both splits, and what the manifest says of them."""

    train: Tokens
    test: Tokens
    held_out: int = 0
    """Rows held out here, because their source came without splits."""
    rejects: list[dict[str, Any]] = field(default_factory=list)
    shares: list[dict[str, Any]] = field(default_factory=list)
    """What each source of a mixture gave; empty for one source alone."""

    def counts(self) -> dict[str, Any]:
        """Counts of the training rows by name, those of the held-out rows under `test`."""
        return {**dict(sorted(self.train.counts.items())), "test": dict(sorted(self.test.counts.items()))}


def train(config: TrainingConfig, work: Work, method: Method) -> StepResult:
    """The model artifact that the settings make, now or before.

    Raises UsageError (no starting model, nothing would be trained), RefNotFound and IntegrityError (inputs),
    EnvironmentFault (packages, weights, memory), StageRejected and NotFinite (the outcome), Interrupted (a
    signal).
    """
    init = _starting_model(config, work.store, method)
    source = _source(config, work, method, init)
    world: Literal["sandbox", "real"] = "sandbox" if "sandbox" in (init.world, source.world) else "real"
    inputs = [InputRef(role="init", ref=init.ref, digest=init.digest, kind="model")]
    if method.reference:
        inputs.append(InputRef(role="reference", ref=init.ref, digest=init.digest, kind="model"))
    inputs += source.inputs("data")
    name = config.out or f"{method.task}-{config.length_label()}"
    step = Step(work, config, name=name, kind="model", inputs=inputs, world=world)
    done = step.done()
    if done is not None:
        return done
    need_training_packages()
    shape = check_trainable(init.path, reference=method.reference)
    need_length(config.max_length, shape.context)
    with quiet():
        tokenizer = load_tokenizer(init.path, system=config.system)
        data = _tokens(config, source, tokenizer, method)
    plan = _plan(config, data, shape, work.emit)
    _show(config, work.emit, init, shape, data, plan)
    if work.dry_run:
        return StepResult(ref=None, artifact=None)
    with step.open() as staging:
        _train(config, method, init, tokenizer, data, plan, staging, work.emit)
        return step.result(staging.commit())


def _starting_model(config: TrainingConfig, store: Store, method: Method) -> ModelSource:
    if config.init is not None:
        return locate_model(store, config.init)
    if not method.reference:
        raise UsageError("no model to start from", hint="--init sandbox, --init ./folder or --init org/name")
    models = [store.newest(name, kind="model", sides=True) for name in store.names()]
    known = [f"--init {m.ref}" for m in models if m is not None]
    raise UsageError(
        f"{method.task} needs the model to start from; it is also the reference",
        hint="one of: " + ", ".join(known)
        if known
        else "--init sandbox, --init ./folder, or first: zephyrctl sft",
    )


def _source(config: TrainingConfig, work: Work, method: Method, init: ModelSource) -> Source:
    texts = list(config.data)
    if not texts:
        newest = work.store.newest(method.default_data, world=init.world, kind=method.data_kind)
        if newest is None:
            raise RefNotFound(
                f"no {method.default_data} of the {init.world} world in the store to train on",
                hint=f"zephyrctl {method.made_by}, or name your own: --data FILE",
            )
        work.emit(
            Note(f"training on {newest.ref}, the newest {method.default_data} of the {init.world} world")
        )
        texts = [str(newest.ref)]
    return open_mixture(
        work.store,
        texts,
        method.data_kind,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        test_fraction=config.test_fraction,
        emit=work.emit,
    )


def _tokens(config: TrainingConfig, source: Source, tokenizer: Any, method: Method) -> Data:
    """All rows as token rows. Splits are those stored; where a source has none, the prompt's hash decides."""
    train: list[tuple[str, Any]] = []
    test: list[tuple[str, Any]] = []
    drawn: list[tuple[str, Any]] = []
    row: Any
    for where, split, row in source.rows():
        if split is None and split_of(row.prompt_id, config.test_fraction) == "test":
            drawn.append((where, row))
        else:
            (test if split == "test" else train).append((where, row))
    if not train:
        train, drawn = drawn, []
    data = Data(method.to_tokens(train, tokenizer), method.to_tokens([*test, *drawn], tokenizer), len(drawn))
    if method.pack is not None and data.train.rows:
        data.train.rows = method.pack(data.train.rows)
        data.train.counts["packs"] = len(data.train.rows)
    data.rejects = [*source.rejects, *data.train.rejects, *data.test.rejects]
    data.shares = source.shares()
    return data


def _plan(config: TrainingConfig, data: Data, shape: Shape, emit: Emit) -> Plan:
    if not data.train.rows:
        why = ", ".join(f"{n} {k}" for k, n in data.train.counts.items() if k.startswith("dropped_") and n)
        raise StageRejected(
            f"no row is left to train on ({why or 'the data has none'})",
            hint="a larger --max-length, or other data",
        )
    plan = make_plan(
        len(data.train.rows),
        batch=config.batch_size,
        micro=config.rows_per_pass(shape.parameters),
        epochs=config.epochs,
        max_steps=config.max_steps,
        warmup=config.warmup,
        scheduler=config.scheduler,
        lr=config.lr,
        seed=config.seed,
    )
    if plan.rows < plan.batch:
        emit(
            Warning_(
                f"{plan.rows} rows are fewer than a batch of {plan.batch}: every step has one short batch"
            )
        )
    if plan.steps < FEW_STEPS:
        emit(
            Warning_(
                f"only {plan.steps} optimiser steps: the model will hardly change (--batch-size, --epochs)"
            )
        )
    return plan


def _show(
    config: TrainingConfig, emit: Emit, init: ModelSource, shape: Shape, data: Data, plan: Plan
) -> None:
    """Says what will happen before it does."""
    rates = plan.learning_rates()
    unit = "packed sequences" if "packs" in data.train.counts else "rows"
    if data.held_out:
        emit(
            Note(
                f"{data.held_out} rows are held out by the hash of their prompt (--set test_fraction=0"
                " trains on all)"
            )
        )
    emit(
        Note(
            f"{plan.steps} steps of {plan.batch} {unit} ({plan.rows} {unit}, {plan.epochs:g} epochs),"
            f" {plan.warmup_steps} of"
            f" them warm-up, peak learning rate {plan.peak_lr:g} ({plan.scheduler}), sum of learning rates"
            f" {sum(rates):.4g}"
        )
    )
    lost = {
        k: n
        for k, n in data.train.counts.items()
        if (k.startswith(("cut", "dropped_")) or "special" in k) and n
    }
    if lost:
        emit(
            Warning_(
                "training rows: " + ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in sorted(lost.items()))
            )
        )
    rows = [
        ("model", f"{init.ref} ({shape.size} parameters)"),
        ("rows", f"{data.train.counts['rows']} to train on, {len(data.test.rows)} held out"),
        (
            "tokens",
            f"{data.train.counts['tokens']} an epoch, {data.train.counts['loss_tokens']} of them bear loss",
        ),
        ("forward passes", f"{plan.accumulation} of up to {plan.micro} rows a step"),
        ("arithmetic", config.dtype),
    ]
    rows += [
        (f"from {share['ref']}", f"{share['used']} rows of {share['rows']} (weight {share['weight']:g})")
        for share in data.shares
    ]
    emit(Table("plan", ("what", "value"), tuple(rows)))


def _train(
    config: TrainingConfig,
    method: Method,
    init: ModelSource,
    tokenizer: Any,
    data: Data,
    plan: Plan,
    staging: Staging,
    tell: Emit,
) -> None:
    def keep(epoch: int, model: Any, journal: Journal) -> None:
        with staging.side(f"{staging.name}.epoch{epoch}", "model") as side:
            if side.existing is None:
                _fill(side, config, model, tokenizer, data, plan, journal)

    def emit(event: Event) -> None:
        staging.log(event)
        tell(event)

    trained = run(
        Job(
            task=method.task,
            config=config,
            init=init.path,
            tokenizer=tokenizer,
            train=data.train.rows,
            test=data.test.rows,
            plan=plan,
            scratch=staging.scratch,
            emit=emit,
            keep_epoch=keep if config.keep_epochs else None,
            beta=method.beta,
            loss=method.loss,
        )
    )
    _fill(staging, config, trained.model, tokenizer, data, plan, trained.journal)
    staging.counts["weights_changed"] = require_change(init.path, staging.path, config.dtype)
    staging.write_rejects(data.rejects)


def _fill(
    staging: Staging,
    config: TrainingConfig,
    model: Any,
    tokenizer: Any,
    data: Data,
    plan: Plan,
    journal: Journal,
) -> None:
    """Puts the model and what is known of it into a version."""
    with quiet():
        save_model(model, tokenizer, staging.path, config.dtype)
    texts = journal.texts()
    for name in (METRICS, TIMING):
        staging.write_text(name, texts[name])
    steps = max((row["step"] for row in journal.metrics), default=0)
    if data.shares:
        staging.extra["mixture"] = data.shares
    staging.counts.update(data.counts())
    staging.counts.update(
        steps=steps, planned_steps=plan.steps, batch_size=plan.batch, held_out=data.held_out
    )
    staging.templates["chat_template"] = template_digest(tokenizer).removeprefix("sha256:")
    for key in ("loss", "test/loss", "test/accuracy", "test/margin"):
        value = journal.last(key)
        if value is not None:
            staging.headline[key.replace("/", "_")] = round(value, 4)
