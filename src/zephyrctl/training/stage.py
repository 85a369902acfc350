"""What `sft` and `dpo` share between their settings and a committed model."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from zephyrctl.artifacts import durable
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.chat.template import template_digest
from zephyrctl.chat.tokenizer import stop_ids
from zephyrctl.errors import TryAgain, UsageError
from zephyrctl.events import Note, Table, Warning_, plain
from zephyrctl.libraries import quiet
from zephyrctl.training import verify
from zephyrctl.training.choosing import choose_engine
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.engines import refuse_other_launcher, write_deepspeed_settings
from zephyrctl.training.footprint import Shape, check_weights, read_shape
from zephyrctl.training.hardware import this_machine
from zephyrctl.training.inputs import (
    Data,
    Method,
    open_data,
    split_rows,
    starting_model,
    template_input,
    tokenise,
)
from zephyrctl.training.job import READY, Job
from zephyrctl.training.journal import METRICS, TIMING
from zephyrctl.training.lengths import workload_of
from zephyrctl.training.loop import open_tokenizer, run
from zephyrctl.training.lora import Base, LoraSettings, need_lora_packages
from zephyrctl.training.model import need_training_packages, require_change
from zephyrctl.training.outlook import Assumptions, look_ahead
from zephyrctl.training.outlook_text import document, events, tables
from zephyrctl.training.plan import FEW_STEPS
from zephyrctl.training.planning import plan_from_lengths
from zephyrctl.training.reference import Reference, describe, reference_step
from zephyrctl.training.settings import TrainingConfig, need_length
from zephyrctl.training.supervise import Launch, rendezvous, run_ranks, wait_for
from zephyrctl.training.trackers import need_trackers

JOB = "job"
"""The folder in a step's scratch that the processes of a run read."""
_PATIENCE = 3600.0
"""Seconds that other machines wait for machine 0 to prepare the job."""


def train(config: TrainingConfig, work: Work, method: Method) -> StepResult:
    """The model artifact that the settings make, now or before.

    Raises UsageError (no starting model, nothing would be trained), RefNotFound and IntegrityError (inputs),
    EnvironmentFault (packages, weights, memory), StageRejected and NotFinite (the outcome), Preempted and Interrupted
    (a signal).
    """
    if config.lengths is not None:
        return _planned(config, work)
    if method.verify_ref and not method.reference:
        raise UsageError("--verify-ref: none of the losses asks a reference", hint="leave it away")
    need_trackers(config.report_to)
    init = starting_model(config, work.store, method)
    source = open_data(config, work, method, init)
    world: Literal["sandbox", "real"] = "sandbox" if "sandbox" in (init.world, source.world) else "real"
    inputs = [InputRef(role="init", ref=init.ref, digest=init.digest, kind="model")]
    if method.reference:
        inputs.append(InputRef(role="reference", ref=init.ref, digest=init.digest, kind="model"))
    inputs += [*source.inputs("data"), *template_input(config), *method.inputs]
    step = Step(
        work, config, name=config.out or f"{method.task}-{config.length_label()}", kind="model", inputs=inputs,
        world=world,
    )  # fmt: skip
    looking = config.preview or config.print_command
    done = None if looking else step.done()
    if done is not None:
        return done
    refuse_other_launcher()
    need_training_packages()
    adapters = LoraSettings.of(config)
    if adapters is not None:
        need_lora_packages(adapters)
    shape = read_shape(init.path)
    check_weights(init.path, shape)
    need_length(config.max_length, shape.context)
    if config.print_command:
        return _commands(config, step, choose_engine(config, shape, this_machine()))
    with quiet():
        tokenizer = open_tokenizer(config, init.path)
    if config.preview:
        rows, _, _ = split_rows(config, source)
        previews = list(method.preview(rows[: config.preview], tokenizer))
        for event in previews:
            work.emit(event)
        return StepResult(ref=None, artifact=None, plan={"preview": [plain(event) for event in previews]})
    if not work.dry_run:
        verify.require_same_engine(step.folder / "scratch", choose_engine(config, shape, this_machine()))
    if config.machine_rank and not work.dry_run:
        return _assist(config, step, choose_engine(config, shape, this_machine()))
    with quiet():
        data = tokenise(config, source, tokenizer, method)
    prepared = _Prepared(config, work, method, init, shape, data, tokenizer)
    prepared.show()
    if work.dry_run:
        return StepResult(ref=None, artifact=None, plan=document(prepared.look))
    prepared.look.require_ready()
    with step.open() as staging:
        prepared.train(step, staging)
        return step.result(staging.commit())


def _planned(config: TrainingConfig, work: Work) -> StepResult:
    """The run planned from token lengths alone."""
    if not work.dry_run:
        raise UsageError("--lengths plans a run and trains nothing", hint="add --dry-run")
    found = plan_from_lengths(
        config,
        Path(str(config.lengths)),
        work.store,
        work.emit,
        hardware=config.for_hardware,
        assumptions=Assumptions(mfu=config.mfu, disk=config.disk_speed),
    )
    return StepResult(ref=None, artifact=None, plan=found)


def _commands(config: TrainingConfig, step: Step, choice: EngineChoice) -> StepResult:
    """What this machine would run, and nothing done."""
    if choice.processes == 1:
        step.work.emit(Note("one process: training runs inside this command, and starts no other"))
        return StepResult(ref=None, artifact=None, plan={"commands": []})
    launch = _launch(config, step.folder, choice)
    lines = launch.shell_lines()
    port = "" if config.rendezvous else ", and the port is one that is free then (--rendezvous names one)"
    step.work.emit(
        Note(
            f"the command itself writes {launch.folder} before it runs these lines, and takes it away at the end{port}"
        )
    )
    return StepResult(ref=None, artifact=None, plan={"commands": lines}, text="\n".join(lines))


def _launch(config: TrainingConfig, folder: Path, choice: EngineChoice) -> Launch:
    address, port = rendezvous(config.rendezvous)
    return Launch(choice, folder / "scratch" / JOB, config.machine_rank, address, port)


def _assist(config: TrainingConfig, step: Step, choice: EngineChoice) -> StepResult:
    """This machine's part of a run that machine 0 leads; the artifact is the one that machine 0 makes."""
    launch = _launch(config, step.folder, choice)
    work = replace(step.work, again=False)
    finished = Step(work, config, name=step.name, kind=step.kind, inputs=step.inputs, world=step.world)
    before = work.store.find_step(step.name, step.key)
    wait_for(launch.folder / READY, seconds=_PATIENCE, what="the job that machine 0 prepares")
    run_ranks(launch, work.emit, lambda name, folder: None)
    work.emit(Note("this machine's part is done; machine 0 writes the model"))
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        done = finished.done()
        if done is not None and (before is None or done.ref != str(before.ref)):
            return replace(done, already=False)
        time.sleep(2.0)
    raise TryAgain("machine 0 has not committed the model", hint="see what machine 0 says")


class _Prepared:
    """A run whose inputs are read and whose plan is made."""

    def __init__(
        self,
        config: TrainingConfig,
        work: Work,
        method: Method,
        init: ModelSource,
        shape: Shape,
        data: Data,
        tokenizer: Any,
    ) -> None:
        self.config, self.work, self.method, self.init = config, work, method, init
        self.data, self.tokenizer = data, tokenizer
        counts = data.train.counts
        self.look = look_ahead(
            config,
            shape,
            this_machine(),
            workload_of(data.rows, cut=counts["cut"], cut_tokens=counts["cut_tokens"]),
            store=work.store.root,
            assumptions=Assumptions(mfu=config.mfu, disk=config.disk_speed),
            checks=_template_checks(data, tokenizer),
        )
        self.plan, self.choice = self.look.plan, self.look.choice

    def show(self) -> None:
        """Says what will happen before it does."""
        emit, plan = self.work.emit, self.plan
        if self.data.held_out:
            emit(
                Note(
                    f"{self.data.held_out} rows are held out by the hash of their prompt (--set test_fraction=0"
                    " trains on all)"
                )
            )
        for clause in self.data.train.warnings():
            emit(Warning_(f"training rows: {clause}"))
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
        for event in events(self.look) if self.work.dry_run else tables(self.look)[:1]:
            emit(event)
        shares = tuple(
            (share["ref"], str(share["used"]), str(share["rows"]), f"{share['weight']:g}")
            for share in self.data.shares
        )
        if shares:
            emit(Table("mixture", ("source", "rows used", "of", "weight"), shares))

    def train(self, step: Step, staging: Staging) -> None:
        """Trains, here or in processes of their own, and fills the version."""
        reference = self._reference()
        known = None
        if reference is not None:
            known = reference.known(staging.scratch / "reference")

        def deliver(name: str, folder: Path) -> None:
            if name == "reference":
                assert reference is not None
                reference.keep(folder)
            elif name == "final":
                self._fill(staging, folder)
            else:
                with staging.side(f"{staging.name}.{name}", "model") as side:
                    if side.existing is None:
                        self._fill(side, folder)

        base = Base.of(self.init)
        job = Job(
            task=self.method.task,
            config=self.config,
            init=self.init.path,
            train=self.data.rows,
            test=self.data.test.rows,
            plan=self.plan,
            scratch=staging.scratch,
            choice=self.choice,
            loss=self.method.loss,
            reference=known,
            verify_ref=self.method.verify_ref,
            mark=uuid.uuid4().hex,
            base=(base.name, base.digest),
            emit=self.work.emit,
            deliver=deliver,
            name=f"{staging.name}-{step.key[:8]}",
            runs=self.work.store.root.parent / "runs",
        )
        verify.make_sure(job, partial(self._start, step))
        self._start(step, job)
        if reference is not None:
            staging.extra.update(describe(reference.artifact))
        staging.counts["weights_changed"] = require_change(self.init.path, staging.path, self.config.dtype)
        staging.write_rejects(self.data.rejects)

    def _start(self, step: Step, job: Job) -> None:
        """Runs a job to its end: in this process, or in processes of their own."""
        if job.choice.processes == 1:
            run(job)
            return
        launch = replace(_launch(self.config, step.folder, job.choice), folder=job.scratch / JOB)
        # other machines begin as soon as the job is there, which has to be last
        write_deepspeed_settings(
            launch.folder, job.choice, dtype=job.config.dtype, max_grad_norm=job.config.max_grad_norm
        )
        job.save(launch.folder)
        try:
            run_ranks(launch, job.emit, job.deliver)
        finally:
            (launch.folder / READY).unlink(missing_ok=True)

    def _reference(self) -> Reference | None:
        if not self.method.reference:
            return None
        quiet_work = replace(self.work, again=False)
        world = "sandbox" if self.init.world == "sandbox" else "real"
        rows, test = self.data.rows, self.data.test.rows
        return reference_step(quiet_work, self.config, self.choice, self.init, rows, test, world)  # type: ignore[arg-type]

    def _fill(self, staging: Staging, folder: Path) -> None:
        """Moves a finished model into a version and writes down what is known of it."""
        journal = {name: (folder / name).read_text(encoding="utf-8") for name in (METRICS, TIMING)}
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in journal):
            target = staging.path / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        durable.remove_tree(folder)
        for name, text in journal.items():
            staging.write_text(name, text)
        metrics = [json.loads(line) for line in journal[METRICS].splitlines()]
        if self.data.shares:
            staging.extra["mixture"] = self.data.shares
        staging.extra["engine"] = {"name": self.choice.name, "processes": self.choice.processes,
                                   "attention": self.choice.attention, "device": self.choice.device}  # fmt: skip
        staging.counts.update(self.data.counts())
        staging.counts.update(
            steps=max((row["step"] for row in metrics), default=0), planned_steps=self.plan.steps,
            batch_size=self.plan.batch, held_out=self.data.held_out,
        )  # fmt: skip
        staging.templates["chat_template"] = template_digest(self.tokenizer).removeprefix("sha256:")
        for key in ("loss", "test/loss", "test/accuracy", "test/margin"):
            value = next((row[key] for row in reversed(metrics) if key in row), None)
            if value is not None:
                staging.headline[key.replace("/", "_")] = round(value, 4)


def _template_checks(data: Data, tokenizer: Any) -> list[tuple[str, str]]:
    """What tokenising every row has shown of the chat template."""
    counts = data.train.counts
    faults = {name.removeprefix("fault_"): n for name, n in counts.items() if name.startswith("fault_") and n}
    told = ", ".join(f"{name.replace('_', ' ')}: {n} rows" for name, n in sorted(faults.items()))
    closes = ", ".join(tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)))
    return [
        ("template round trip", f"{counts['rows']} rows" + (f"; {told}" if told else ", no fault")),
        ("answers end with", closes),
    ]
