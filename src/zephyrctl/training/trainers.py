"""TRL's trainers, fed with our token ids and our batches.

What is overridden, and why: the dataset preparation (ours is done, TRL's DPO would tokenise text again), the
data loader (global batches as planned), the weight of a forward pass (mean over the global batch however it
is split), and the model card TRL writes into every checkpoint.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from zephyrctl.training.plan import MicroBatches, Plan
from zephyrctl.training.settings import TrainingConfig

if TYPE_CHECKING:
    _Trainer = Any


def trainer_arguments(config: TrainingConfig, plan: Plan, scratch: str) -> dict[str, Any]:
    """Keyword arguments of SFTConfig and DPOConfig for this plan."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": scratch,
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.micro,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_epsilon": config.adam_epsilon,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": config.dtype == "bf16",
        "use_cpu": not on_gpu,
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


def with_recomputation(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with activation recomputation on for a GPU and off for a CPU, by the name this transformers
    has for it."""
    wanted = not values["use_cpu"]
    names = {f.name for f in dataclasses.fields(cls)}
    if "activation_checkpointing" in names:
        return {**values, "gradient_checkpointing": False, "activation_checkpointing": wanted}
    return {**values, "gradient_checkpointing": wanted}


class PlannedBatches:
    """What both trainers share: batches as planned, metrics weighted like the loss, no model card."""

    plan: Plan
    lengths: list[int]
    step_weight: float = 0.0

    def get_train_dataloader(self: _Trainer) -> Any:
        """Forward passes in the plan's order; nothing is shuffled, dropped or filled up elsewhere."""
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self.train_dataset,
            batch_sampler=MicroBatches(self.plan, self.lengths),
            collate_fn=self.data_collator,
            num_workers=0,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self: _Trainer, *args: Any, **kwargs: Any) -> Any:
        """The forward passes of one step, whose total weight is remembered."""
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self.step_weight = float(sum(self.weight_of(batch) for batch in samples))
        return samples, items

    def share(self: _Trainer, inputs: Any) -> float:
        """This pass's part of the step, times the number of passes: 1 where all passes weigh the same."""
        passes = float(self.current_gradient_accumulation_steps)
        return float(self.weight_of(inputs)) * passes / max(float(self.step_weight), 1.0)

    def weigh_metrics(self: _Trainer, share: float) -> None:
        """Scales the metrics that this pass appended, so that their mean over the step is the mean over its
        rows."""
        for values in getattr(self, "_metrics", {}).get("train", {}).values():
            if values and len(values) > 0:
                values[-1] = values[-1] * share

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints are scratch and need no card; the artifact has its own."""


class PlannedSft(PlannedBatches):
    """SFT: the loss is already the mean over the loss-bearing tokens of the step."""

    def weight_of(self, batch: Any) -> int:
        """Loss-bearing tokens of a pass."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def compute_loss(self: _Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; only the metrics beside it are weighted."""
        share = self.share(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self.weigh_metrics(share)
        return loss


class PlannedDpo(PlannedBatches):
    """DPO: TRL's loss is the mean over the pairs of a pass; the share makes it the mean over the pairs of
    the step."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The dataset as it is: it holds token ids."""
        return dataset

    def weight_of(self, batch: Any) -> int:
        """Pairs of a pass."""
        return int(batch["input_ids"].shape[0]) // 2

    def compute_loss(self: _Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, weighted by this pass's share of the step."""
        share = self.share(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self.weigh_metrics(share)
        return loss * share


def make_sft_trainer(
    model: Any, tokenizer: Any, rows: list[Any], config: TrainingConfig, plan: Plan, scratch: str
) -> Any:
    """An SFTTrainer over token rows (`input_ids`, `labels`), or over packs of them (`seq_lengths` too)."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    columns = ["input_ids", "labels"]
    values = trainer_arguments(config, plan, scratch)
    values |= {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "loss_type": "nll"}
    if hasattr(rows[0], "seq_lengths"):
        # The packs are made; what is wanted of TRL is the collator that restarts positions at each row.
        columns.append("seq_lengths")
        values["padding_free"] = True
    data = Dataset.from_dict({name: [getattr(row, name) for row in rows] for name in columns})
    cls = type("SftRun", (PlannedSft, SFTTrainer), {"plan": plan, "lengths": [r.length for r in rows]})
    return _finish(cls, SFTConfig, values, model=model, processing_class=tokenizer, train_dataset=data)


def make_dpo_trainer(
    model: Any,
    reference: Any,
    tokenizer: Any,
    rows: list[Any],
    reference_logprobs: tuple[list[float], list[float]],
    config: TrainingConfig,
    plan: Plan,
    scratch: str,
    *,
    beta: float,
    loss: str,
) -> Any:
    """A DPOTrainer over token rows with the reference's log-probabilities at hand, so that it never runs the
    reference."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    values = trainer_arguments(config, plan, scratch) | {
        "beta": beta,
        "loss_type": [loss],
        "disable_dropout": True,
    }
    columns: dict[str, list[Any]] = {
        name: [getattr(r, name) for r in rows] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    }
    columns["ref_chosen_logps"], columns["ref_rejected_logps"] = reference_logprobs
    cls = type("DpoRun", (PlannedDpo, DPOTrainer), {"plan": plan, "lengths": [r.length for r in rows]})
    data = Dataset.from_dict(columns)
    trainer = _finish(
        cls,
        DPOConfig,
        values,
        model=model,
        ref_model=reference,
        processing_class=tokenizer,
        train_dataset=data,
    )
    # The columns above carry what the reference says, so the second model can leave memory.
    trainer.precompute_ref_logps = True
    trainer.ref_model = None
    return trainer


def _finish(cls: type, config_cls: type, values: dict[str, Any], **kwargs: Any) -> Any:
    from transformers import PrinterCallback

    trainer = cls(args=config_cls(**with_recomputation(config_cls, values)), **kwargs)
    trainer.remove_callback(PrinterCallback)
    return trainer
