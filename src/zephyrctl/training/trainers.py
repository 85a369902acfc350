"""TRL's trainers, fed with our token ids, our batches and our losses.

What is overridden, and why: the dataset preparation (ours is done, TRL's DPO would tokenise text again), the data
loader (global batches as planned, a share for each process), the loss (the sum over this process's rows divided by
the weight of the whole step, however it is split), the log (our metrics, summed over all processes), the model card
that TRL writes into every checkpoint, and the notice that it sends to the Hub.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zephyrctl.losses import PairLogprobs, PreferenceLoss
from zephyrctl.training.batches import dialogue_sequences, loss_token_counts, pair_sequences, tensors
from zephyrctl.training.crew import Crew
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.forward import read_predicted, sums_by_owner
from zephyrctl.training.lora import is_adapted, settle
from zephyrctl.training.passes import Pass, Passes, accumulation
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig

if TYPE_CHECKING:
    _Trainer = Any

_OPTIMISERS = {"adamw": "adamw_torch", "rmsprop": "rmsprop", "paged_adamw_32bit": "paged_adamw_32bit"}


@dataclass
class Feed:
    """What a run is fed with: the rows in the plan's numbering, padding, and what the reference said of them."""

    rows: Any
    """Token rows or packs of them (`TokenRows`, `PackedRows`)."""
    plan: Plan
    pad: int
    crew: Crew = field(default_factory=Crew)
    flat: bool = False
    """All rows of a pass in one sequence, for attention that takes sequences of any length without padding."""
    loss: PreferenceLoss | None = None
    """None for SFT."""
    reference: tuple[list[float], list[float]] | None = None
    """Summed log-probabilities (chosen, rejected) of every pair; known once the first pass has been made."""
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        pairs = self.loss is not None
        self.weights = [1.0] * len(self.rows) if pairs else [float(n) for n in loss_token_counts(self.rows)]

    def __len__(self) -> int:
        return len(self.rows)

    def passes(self) -> Passes:
        """This process's passes in order."""
        return Passes(
            self.plan, self.rows.lengths(), self.weights, rank=self.crew.rank, world=self.crew.world
        )

    def __getitem__(self, one: Pass) -> dict[str, Any]:
        """The tensors of a pass; what is no tensor stays as exact as it is (an engine may round tensors)."""
        rows = [self.rows[row] for row in one.rows]
        made = dialogue_sequences(rows) if self.loss is None else pair_sequences(rows)
        batch = tensors(made, pad=self.pad, flat=self.flat)
        batch["weight"] = one.weight
        batch["filler"] = one.filler
        if self.loss is not None:
            batch["token_counts"] = [len(sequence.predicted) for sequence in made]
            if self.reference is not None:
                batch["reference"] = [[side[row] for row in one.rows] for side in self.reference]
        return batch


def trainer_arguments(
    config: TrainingConfig, plan: Plan, scratch: str, choice: EngineChoice
) -> dict[str, Any]:
    """Keyword arguments of SFTConfig and DPOConfig for this plan on this engine."""
    on_gpu = choice.device == "cuda"
    return {
        "output_dir": scratch,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.micro,
        "gradient_accumulation_steps": accumulation(plan, choice.processes),
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "optim": _OPTIMISERS[config.optimizer],
        "bf16": config.dtype == "bf16",
        # DeepSpeed takes no process for one without a GPU unless it is told nothing about CPUs here
        "use_cpu": not on_gpu and choice.name not in ("zero2", "zero3", "fsdp2"),
        "ddp_find_unused_parameters": False,
        # one process may save for long while the others wait; a dead one is noticed by whoever started them
        "ddp_timeout": 4 * 3600,
        "ddp_backend": None if choice.name == "single" else ("nccl" if on_gpu else "gloo"),
        "max_length": None,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": config.seed,
        "data_seed": config.seed,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


def with_recomputation(cls: type, values: dict[str, Any], wanted: bool) -> dict[str, Any]:
    """`values` with activation recomputation on or off, by the name this transformers has for it."""
    names = {f.name for f in dataclasses.fields(cls)}
    if "activation_checkpointing" in names:
        return {**values, "gradient_checkpointing": False, "activation_checkpointing": wanted}
    return {**values, "gradient_checkpointing": wanted}


class Planned:
    """What both trainers share: batches as planned, the loss over the whole step, metrics of all processes."""

    feed: Feed
    loss_is_scaled_for_ga = True
    _sums: dict[str, Any]
    _weight: float

    def get_train_dataloader(self: _Trainer) -> Any:
        """Forward passes in the plan's order; nothing is shuffled, dropped or filled up elsewhere."""
        from torch.utils.data import DataLoader

        class Loader(DataLoader):  # type: ignore[type-arg]
            def set_epoch(self, epoch: int) -> None:
                self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]

        return Loader(self.feed, batch_sampler=self.feed.passes(), collate_fn=_only, num_workers=0)

    def compute_loss(self: _Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """This process's part of the step's mean loss, times the number of processes, whose mean is then taken."""
        total, sums = self.loss_of_pass(model, inputs)
        if inputs["filler"]:
            total = total * 0.0
        else:
            for name, value in sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()
        self._weight = inputs["weight"]
        return total * (self.feed.crew.world / inputs["weight"])

    def log(self: _Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the step's metrics, summed over all processes, and tells the callbacks."""
        if "learning_rate" in logs:
            names = self.metric_names
            found = self.feed.crew.total([float(self._sums.get(name, 0.0)) for name in names])
            logs |= {name: value / self._weight for name, value in zip(names, found, strict=True)}
            self._sums = {}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints are scratch and need no card; the artifact has its own."""

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""


class PlannedSft(Planned):
    """SFT: mean negative log-probability over the loss-bearing tokens of the step."""

    metric_names = ("entropy", "mean_token_accuracy")

    def loss_of_pass(self: _Trainer, model: Any, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The summed loss of a pass and the sums of its metrics."""
        with self.compute_loss_context_manager():
            read = read_predicted(model, inputs)
        return -read.logprobs.sum(), {
            "entropy": read.entropy.sum(),
            "mean_token_accuracy": read.top.sum(),
        }


class PlannedDpo(Planned):
    """Preference optimisation: the mean over the pairs of the step of whichever loss was chosen."""

    metric_names = (
        "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
        "logps/rejected",
    )  # fmt: skip

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The dataset as it is: token ids are fed elsewhere."""
        return dataset

    def loss_of_pass(self: _Trainer, model: Any, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The summed loss of a pass and the sums of its metrics."""
        with self.compute_loss_context_manager():
            read = read_predicted(model, inputs)
        sums = sums_by_owner(read.logprobs, inputs["owner"], len(inputs["token_counts"]))
        pairs = pair_logprobs(sums, inputs["token_counts"], inputs.get("reference"))
        losses = self.feed.loss(pairs)
        rewards = self.feed.loss.rewards(pairs)
        return losses.sum(), {
            "rewards/chosen": rewards.chosen.sum(),
            "rewards/rejected": rewards.rejected.sum(),
            "rewards/margins": (rewards.chosen - rewards.rejected).sum(),
            "rewards/accuracies": (rewards.chosen > rewards.rejected).sum(),
            "logps/chosen": pairs.chosen.sum(),
            "logps/rejected": pairs.rejected.sum(),
        }


def pair_logprobs(sums: Any, token_counts: Sequence[int], reference: Any = None) -> PairLogprobs:
    """Sums `[2 pairs]` (all chosen answers, then all rejected) as the losses take them."""
    import torch

    half = len(token_counts) // 2
    counts = torch.tensor(token_counts, dtype=torch.float32, device=sums.device)
    known = (
        (None, None)
        if reference is None
        else torch.tensor(reference, dtype=torch.float32, device=sums.device)
    )
    return PairLogprobs(
        chosen=sums[:half],
        rejected=sums[half:],
        ref_chosen=known[0],
        ref_rejected=known[1],
        chosen_tokens=counts[:half],
        rejected_tokens=counts[half:],
    )


def make_trainer(task: str, arguments: Any, load: Callable[[], Any], tokenizer: Any, feed: Feed) -> Any:
    """TRL's SFTTrainer or DPOTrainer on `feed`. `load` gives the model. There is no second model: what a reference says
    stands in `feed.reference`."""
    import trl

    # TRL wants a dataset that it can look at; the rows are fed by the loader
    if task == "sft":
        cls: type = type("SftRun", (PlannedSft, trl.SFTTrainer), {})
        empty = {"input_ids": [[0]], "labels": [[0]]}
    else:
        # TRL loads a reference of its own unless it believes that its log-probabilities are at hand
        arguments.precompute_ref_log_probs = True
        cls = type("DpoRun", (PlannedDpo, trl.DPOTrainer), {"_precompute_ref_logps": _as_it_is})
        empty = {"prompt_ids": [[0]], "chosen_ids": [[0]], "rejected_ids": [[0]]}
    return _trainer(cls, arguments, load, tokenizer, feed, empty)


def _as_it_is(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
    return dataset


def make_arguments(task: str, config: TrainingConfig, plan: Plan, scratch: str, choice: EngineChoice) -> Any:
    """TRL's settings object; making it sets up the engine's process group."""
    from trl import DPOConfig, SFTConfig

    values = trainer_arguments(config, plan, scratch, choice)
    if task == "sft":
        values |= {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "loss_type": "nll"}
    else:
        values |= {"disable_dropout": True}
    cls = SFTConfig if task == "sft" else DPOConfig
    return cls(**with_recomputation(cls, values, choice.recompute))


def _trainer(
    cls: type, arguments: Any, load: Callable[[], Any], tokenizer: Any, feed: Feed, empty: dict[str, Any]
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback

    fed = type(cls.__name__, (cls,), {"feed": feed, "_sums": {}, "_weight": 1.0})
    trainer = fed(
        model=load(), args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_dict(empty)
    )
    trainer.remove_callback(PrinterCallback)
    if is_adapted(trainer.model):
        settle(trainer.model)
    return trainer


def _only(items: list[Any]) -> Any:
    return items[0]
