"""One training run, from token rows to a trained model on disk: resumed where an earlier one stopped. Every process of
a run goes through it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from zephyrctl.artifacts.durable import remove_tree
from zephyrctl.chat.tokenizer import load_tokenizer, stop_ids
from zephyrctl.errors import EnvironmentFault, StageRejected, TryAgain, no_space
from zephyrctl.events import Emit, Note, Warning_, silent
from zephyrctl.libraries import quiet
from zephyrctl.losses import make_loss
from zephyrctl.training import checkpoint
from zephyrctl.training.crew import Crew
from zephyrctl.training.engines import require_engine
from zephyrctl.training.flops import peak_flops
from zephyrctl.training.footprint import read_shape
from zephyrctl.training.gather import gathered
from zephyrctl.training.job import Job
from zephyrctl.training.journal import Journal
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.lora import Base, LoraSettings, is_adapted
from zephyrctl.training.model import load_model, save_model
from zephyrctl.training.probes import DialogueProbe, PairProbe, SampleProbe, dialogue_prompts
from zephyrctl.training.reference import Spoken, difference, read_reference, sample, write_reference
from zephyrctl.training.scoring import Scorer
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.signals import StopSignal, stop_signal, stopped
from zephyrctl.training.steps import step_sizes
from zephyrctl.training.trackers import open_trackers
from zephyrctl.training.trainers import Feed, make_arguments, make_trainer
from zephyrctl.training.watch import Watch

KEPT = "kept"
"""The folder in a run's scratch where finished models wait to be taken over."""


def open_tokenizer(config: TrainingConfig, init: Path) -> Any:
    """The tokenizer of the starting model with the template that the settings ask for."""
    return load_tokenizer(
        init,
        template=config.chat_template,
        default_template=config.default_template,
        system=config.system,
        date=config.template_date,
        bos=config.bos,
    )


def run(job: Job) -> None:
    """Trains and delivers. Raises NotFinite within one step of a number that is not finite, StageRejected where DPO
    does not begin where it has to, Preempted or Interrupted after a signal (a checkpoint is saved), EnvironmentFault
    where memory runs out or the engine is not the one chosen."""

    with quiet(), stop_signal() as stop:
        from transformers import set_seed  # what it imports besides has something to say

        set_seed(job.config.seed)
        try:
            _Run(job, stop).train()
        except Exception as error:
            known = _in_words(error, job)
            if known is None:
                raise
            raise known from error


def _in_words(error: Exception, job: Job) -> EnvironmentFault | None:
    """What a fault of memory or disk means for the user; None for any other error.

    Neither the CPU's allocator nor those who write tensors have error types of their own for it.
    """
    import torch

    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text:
        smaller = max(1, job.plan.micro // 2)
        return EnvironmentFault(
            f"out of memory while training with {job.plan.micro} rows per pass",
            hint=f"--set micro_batch={smaller} gives the same result in less memory; so do --set recompute=on"
            " and a sharding --engine",
        )
    if getattr(error, "errno", None) in checkpoint.FULL or any(mark in text for mark in _CANNOT_WRITE):
        return no_space(job.scratch, os.strerror(errno.ENOSPC))
    return None


_CANNOT_WRITE = (
    "No space left on device",
    "Disk quota exceeded",
    "inline_container.cc",
    "PytorchStreamWriter",
)
"""How safetensors and torch put it that a disk takes no more."""


class _Run:
    """One process's part of a run."""

    def __init__(self, job: Job, stop: StopSignal) -> None:
        self.job = job
        self.stop = stop
        self.config = job.config
        self.tokenizer = open_tokenizer(job.config, job.init)
        self.feed = Feed(
            job.train,
            job.plan,
            self.tokenizer.pad_token_id,
            flat=job.choice.attention == "flash_attention_2",
            loss=None if job.loss is None else make_loss(job.loss),
        )
        arguments = make_arguments(job.task, job.config, job.plan, str(job.scratch), job.choice)
        self.trainer = make_trainer(job.task, arguments, self._load, self.tokenizer, self.feed)
        self.crew = self.feed.crew = require_engine(self.trainer.accelerator, job.choice)
        if self.crew.told(job.mark) != job.mark:
            raise TryAgain(
                "another preparation of this job was read than the one machine 0 made",
                hint="start the command again on every machine",
            )
        self.emit: Emit = job.emit if self.crew.leads else silent
        self.journal = Journal()
        self.on_test: tuple[list[float], list[float]] | None = None
        named = getattr(self.trainer.model.generation_config, "eos_token_id", None)
        self.stops = frozenset(stop_ids(self.tokenizer, named))

    def train(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the end."""
        resume = self._checkpoint()
        watch = self._watch()
        begin = partial(self._begin, watch, fresh=resume is None)
        self.trainer.add_callback(_as_callback(watch, before=begin, stop_at=self.job.stop_at))
        watch.trackers = open_trackers(
            self.config.report_to if self.crew.leads else [],
            run=self.job.name,
            folder=self.job.runs or self.job.scratch,
            config=self.config.model_dump(mode="json"),
            emit=self.emit,
            step=max((row["step"] for row in self.journal.metrics), default=0),
        )
        try:
            self.trainer.train(resume_from_checkpoint=resume)
        finally:
            if watch.trackers is not None:
                watch.trackers.close()
        step = self.trainer.state.global_step
        if step < self.job.plan.steps:
            number = self.crew.most(self.stop.number or 0)
            if step == self.job.stop_at and not number:
                return
            raise stopped(number, f"the checkpoint of step {step} of {self.job.plan.steps} is saved")
        self._keep("final")
        self.trainer.accelerator.end_training()

    def _load(self) -> Any:
        model = load_model(self.job.init, config=self.config, attention=self.job.choice.attention)
        read_inside(model.get_base_model() if is_adapted(model) else model)
        return model

    def _checkpoint(self) -> str | None:
        """The checkpoint to go on from, the same on every process; its journal is read."""
        text = ""
        if self.crew.leads:
            self.job.scratch.mkdir(parents=True, exist_ok=True)
            found = checkpoint.newest(self.job.scratch)
            for sentence in found.passed_over:
                self.emit(Warning_(f"{sentence}; it is passed over"))
            if found.path is not None and self._speaks() and self.job.reference is None:
                self.emit(Warning_("the reference's log-probabilities are gone: training starts anew"))
            elif found.path is not None:
                self.emit(Note(f"resuming at step {found.step} of {self.job.plan.steps}"))
                text = str(found.path)
        text = self.crew.told(text)
        if not text:
            return None
        self.journal = Journal.load(Path(text))
        return text

    def _speaks(self) -> bool:
        """Whether a reference's word is needed."""
        return self.feed.loss is not None and self.feed.loss.needs_reference

    def _watch(self) -> Watch:
        sizes = step_sizes(self.feed.rows, self.job.plan, pairs=self.feed.loss is not None)
        shape = read_shape(self.job.init)
        watch = Watch(
            task=self.job.task,
            plan=self.job.plan,
            journal=self.journal,
            scratch=self.job.scratch,
            emit=self.emit,
            stop=self.stop,
            step_tokens=sizes.tokens,
            step_lengths=sizes.lengths,
            step_flops=lambda step: sizes.flops(step, shape, lora=self.config.lora),
            peak_flops=_peak(self.crew),
            save_steps=self.config.save_steps,
            crew=self.crew,
        )
        if self.config.keep_epochs:
            watch.keep_epoch = lambda number, model, journal: self._keep(f"epoch{number}")
        if self.job.test:
            watch.held_out = lambda model: self._held_out()
        if self.feed.loss is not None:
            watch.first_loss = self.feed.loss.starts_at
            watch.first_loss_tolerance = 1e-3 if self.config.dtype == "fp32" else 2e-2
        return watch

    def _begin(self, watch: Watch, *, fresh: bool) -> None:
        """Before step 1: the policy is the reference still, and says what the reference says."""
        watch.samples = self._samples()
        if not self._speaks():
            return
        known = self.crew.told(str(self.job.reference or ""))
        if known:
            spoken = read_reference(Path(known))
            if self.job.verify_ref and not fresh:
                self.emit(
                    Note("the reference is not asked again: the model has left it, since training goes on")
                )
            elif self.job.verify_ref:
                self._verify(spoken)
        else:
            self.emit(Note(f"the reference reads {len(self.job.train) + len(self.job.test)} pairs, once"))
            scorer = self._scorer()
            spoken = Spoken(scorer.pairs(self.job.train), scorer.pairs(self.job.test))
            if self.crew.leads:
                folder = self.job.scratch / KEPT / "reference"
                write_reference(folder, spoken)
                self.job.deliver("reference", folder)
        self.feed.reference, self.on_test = spoken.train, spoken.test

    def _verify(self, spoken: Spoken) -> None:
        """Recomputes what the reference said of some pairs. Raises StageRejected where it differs."""
        rows = sample(self.job.train, self.job.verify_ref)
        pairs = [self.job.train[row] for row in rows]
        found = self._scorer().pairs(pairs)
        known = [[side[row] for row in rows] for side in spoken.train]
        counts = [[len(p.chosen_ids) for p in pairs], [len(p.rejected_ids) for p in pairs]]
        worst, allowed = difference(found, known, counts, self.config.dtype)
        if worst > allowed:
            raise StageRejected(
                f"the stored log-probabilities of the reference differ from recomputed ones by up to {worst:.3g} nats"
                f" per token ({len(rows)} pairs, {allowed:g} allowed)",
                hint="remove them (zephyrctl artifacts rm REF; zephyrctl artifacts ls --kind logprobs) and run again",
            )
        self.emit(
            Note(
                f"{len(rows)} of the reference's log-probabilities recomputed: at most {worst:.2g} nats per token off"
            )
        )

    def _scorer(self) -> Scorer:
        return Scorer(
            model=self.trainer.model_wrapped,
            pad=self.feed.pad,
            size=self.job.plan.micro,
            flat=self.feed.flat,
            autocast=self.trainer.accelerator.autocast,
            device=self.trainer.accelerator.device,
            crew=self.crew,
            before_pass=self._stop_before_step_1,
        )

    def _stop_before_step_1(self) -> None:
        """Raises Preempted or Interrupted after a signal while no step has been made: there is nothing to save yet, and
        reading all pairs may take longer than a batch system waits. Every process calls it at the same points."""
        if self.trainer.state.global_step == 0:
            number = self.crew.most(self.stop.number or 0)
            if number:
                raise stopped(number, "no step was made yet", resume="the same command begins again")

    def _held_out(self) -> dict[str, float]:
        """Scores of the held-out rows under the model as it is now."""
        if self.feed.loss is None:
            return DialogueProbe(self._scorer(), self.job.test, self.stops).measure()
        return PairProbe(self._scorer(), self.job.test, self.stops, self.feed.loss, self.on_test).measure()

    def _samples(self) -> SampleProbe | None:
        """What draws answers of the model's own; None where an engine that shards the weights cannot."""
        if not self.job.test or self.job.choice.name not in ("single", "ddp"):
            return None
        prompts = (
            dialogue_prompts(self.job.test)
            if self.feed.loss is None
            else [row.prompt_ids for row in self.job.test]
        )
        return SampleProbe(self._scorer(), prompts, self.stops, self.config.seed, self.journal)

    def _keep(self, name: str) -> None:
        """Writes the model as it is now, whole, and hands it over."""
        lora = LoraSettings.of(self.config)
        if self.job.choice.name == "zero3":
            # a scoring pass leaves weights on their way that it fetched ahead; they have to land first
            self.trainer.model_wrapped.empty_partition_cache()
        model = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        state = gathered(model, leads=self.crew.leads, trainable=lora is not None)
        if self.crew.leads:
            folder = self.job.scratch / KEPT / name
            if folder.exists():
                remove_tree(folder)
            save_model(
                model, self.tokenizer, folder, self.config.dtype, init=self.job.init, state=state, lora=lora,
                base=Base(*self.job.base) if lora is not None else None,
            )  # fmt: skip
            for file, text in self.journal.texts().items():
                (folder / file).write_text(text, encoding="utf-8")
            self.job.deliver(name, folder)
        self.crew.wait()


def _peak(crew: Crew) -> float | None:
    """What all GPUs together can do in a second; None on a CPU, and for a GPU that is not known."""
    import torch

    if not torch.cuda.is_available():
        return None
    one = peak_flops(torch.cuda.get_device_name())
    return None if one is None else one * crew.world


def _as_callback(watch: Watch, *, before: Callable[[], None], stop_at: int | None) -> Any:
    """The watch as transformers wants a callback: with a handler for every event there is. `before` runs once the
    engine holds the model and no step has been made; the step `stop_at` is saved, and is the last."""
    from transformers import TrainerCallback

    class Adapter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before()
            watch.on_train_begin(args, state, control, **kwargs)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_step_begin(args, state, control, **kwargs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_step_end(args, state, control, **kwargs)
            if state.global_step == stop_at:
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_log(args, state, control, **kwargs)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.on_save(args, state, control, **kwargs)

    return Adapter()
