"""The settings that `sft` and `dpo` share. Names and defaults; the recipe's numbers live in the editions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zephyrctl.chat.rules import TokenRules
from zephyrctl.config import StageConfig, reads, runtime
from zephyrctl.errors import UsageError

_TINY = 50_000_000

Engine = Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"]
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]


class TrainingConfig(StageConfig):
    """What both training stages can be asked."""

    init: str | None = reads(None)
    """The model to start from: a folder, an artifact, a Hub name, or `sandbox`."""
    data: list[str] = reads([])
    """What to train on, each with `=weight` where wanted (0.5 = half of its rows, 2 = every row twice); without it the
    newest artifact under the preceding stage's default name is taken."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; wins over `epochs`."""
    lr: float = Field(2e-5, gt=0, le=1e30)
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the optimiser steps in which the learning rate rises from 0."""
    batch_size: int = Field(32, ge=1)
    """Rows per optimiser step over all processes, whatever `micro_batch` and `num_processes` are."""
    max_length: int = Field(1024, ge=8)
    """Tokens a sequence may have; longer ones are cut, and counted."""
    optimizer: Literal["adamw", "rmsprop", "paged_adamw_32bit"] = "adamw"
    """adamw: torch's. rmsprop: as the first public recipe had. paged_adamw_32bit: bitsandbytes', states can leave the
    GPU."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first beta."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's second beta."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """bf16: float32 master weights, bfloat16 autocast, saved in bfloat16. fp32: float32 throughout."""
    chat_template: str | None = reads(None)
    """The chat template to use whatever the model brings: a name that ships (`zephyr`), or a .jinja file. Without it a
    base model gets `default_template`, a chat model keeps its own."""
    default_template: str = "zephyr"
    """The template of a model that has none."""
    template_date: str | None = None
    """The day (YYYY-MM-DD) that templates which state today's date are given; None refuses such a template's guess and
    takes the fixed day that the template itself names, or 2024-07-26."""
    system: str | None = None
    """The system turn that dialogues without one are given, in training and in the saved chat template
    (empty text: an empty system turn). None leaves the template of the model it starts from as it is."""
    bos: bool | None = None
    """Put the beginning-of-sequence token before the first token, where the template does not; false takes away one
    that an earlier stage put there so."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts held out, by their hash, from data that comes without splits."""
    keep_epochs: bool = False
    """Keep a model per epoch, as `<name>.epoch<k>`."""
    lora: bool = False
    """Train low-rank adapters on all linear layers instead of the weights; the artifact holds the merged model, and the
    adapter beside it."""
    lora_r: int = Field(16, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(16, gt=0)
    """Their scale is alpha / rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters, in training. Above 0 the result depends on how a batch is split: each process draws
    for itself."""
    lora_targets: list[str] = Field(default_factory=list)
    """Names of the modules that get adapters; none named: every linear layer but the output head."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the frozen weights are held in 4 bits (QLoRA; needs lora and the `qlora` extra)."""
    max_dropped: float = runtime(0.05, ge=0, le=1)
    """Share of the training rows that may be dropped (unrenderable, too long); beyond it the stage stops."""
    micro_batch: int | None = runtime(None, ge=1)
    """Rows per forward pass of one process; gradients are accumulated to `batch_size`. Without it chosen from the
    model's size and the memory."""
    save_steps: int | None = runtime(None, ge=1)
    """Save a checkpoint every so many steps; without it about once a minute, and so seldom that saving takes at most a
    twentieth of the time."""
    engine: Engine = runtime("auto")
    """How processes share the work: single; ddp; fsdp2; zero2, zero3 (DeepSpeed). auto: single for one process, else
    what fits: ddp, or zero3 (fsdp2 without DeepSpeed)."""
    offload: bool = runtime(False)
    """ZeRO keeps the optimiser's states (zero3: weights too) in the CPU's memory."""
    num_processes: int | None = runtime(None, ge=1)
    """Processes over all machines; without it one per visible GPU, or one."""
    num_machines: int = runtime(1, ge=1)
    """Machines that run the same command, all with the same store."""
    machine_rank: int = runtime(0, ge=0)
    """This machine's number; machine 0 writes the artifact."""
    rendezvous: str | None = runtime(None)
    """`host:port` of machine 0, where the processes meet."""
    attn: Literal["auto", "flash", "sdpa", "eager"] = runtime("auto")
    """Attention: auto takes FlashAttention where it is installed and a GPU is there, else sdpa."""
    recompute: Literal["auto", "on", "off"] = runtime("auto")
    """Recompute activations in the backward pass (less memory, a third more arithmetic); auto: on where the estimate
    says that it does not fit otherwise."""
    report_to: list[Tracker] = runtime([])
    """Trackers that get the metrics while they are made."""
    preview: int = runtime(0, ge=0)
    """Show so many rows as they will be trained on, and do nothing else."""
    print_command: bool = runtime(False)
    """Print the commands of this machine's processes, and do nothing else."""
    lengths: str | None = runtime(None)
    """A .npy file of token lengths to plan from, where no data is at hand; with --dry-run."""
    for_hardware: str | None = runtime(None)
    """With `lengths`: machines to plan for, such as `16xA100-80GB`; without it this one."""
    mfu: float | None = runtime(None, gt=0, le=1)
    """The share of the GPUs' peak that time is estimated with."""
    disk_speed: float | None = runtime(None, gt=0)
    """Bytes a second with which checkpoints are expected to be written."""
    verify_resume: int = runtime(0, ge=0)
    """On resuming, first replay up to so many steps before the newest checkpoint and compare."""

    @field_validator("data", "report_to", "lora_targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("recompute", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.out is not None and not self.out.strip():
            raise ValueError("`out` is empty")
        if self.quantize != "none" and not self.lora:
            raise ValueError("`quantize` needs `lora`: weights held in 4 bits cannot be trained themselves")
        if self.num_machines > 1 and not self.rendezvous and not self.lengths:
            raise ValueError("several machines need `rendezvous` (host:port of machine 0)")
        if self.machine_rank >= self.num_machines:
            raise ValueError("`machine_rank` counts from 0 and must be less than `num_machines`")
        return self

    def rules(self) -> TokenRules:
        """What the settings say about tokens beyond the chat template."""
        return TokenRules(bos=bool(self.bos))

    def length_label(self) -> str:
        """`e3` for three epochs, `s200` for 200 steps: the tail of the default name."""
        return f"s{self.max_steps}" if self.max_steps is not None else f"e{self.epochs:g}"

    def rows_per_pass(self, parameters: int | None = None) -> int:
        """Rows per forward pass, never more than a batch; without a setting more for a tiny model than for
        others."""
        default = 32 if parameters is not None and parameters < _TINY else 8
        return min(self.micro_batch or default, self.batch_size)


def need_length(max_length: int, context: int | None) -> None:
    """Raises UsageError where `max_length` exceeds the model's context (tokens)."""
    if context is not None and max_length > context:
        raise UsageError(
            f"max_length {max_length} is more than the model's context of {context} tokens",
            hint=f"--max-length {context}",
        )
