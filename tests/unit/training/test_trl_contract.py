"""What is overridden in TRL, transformers, accelerate and PEFT, or relied on there, must still be there and in use."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.libraries import quiet
from zephyrctl.losses import LossSpec, make_loss
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.logprobs import read_inside
from zephyrctl.training.model import load_model
from zephyrctl.training.plan import Plan
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.token_rows import PairRows, PairTokens, SftRows, SftTokens
from zephyrctl.training.trainers import Feed, Planned, PlannedDpo, PlannedSft, make_arguments, make_trainer

PLAN = Plan(3, 2, 1, 4, 1, "cosine", 1e-3, 0)
LOSS = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (
            "trl.DPOTrainer",
            "_prepare_dataset",
            ["self", "dataset", "processing_class", "args", "dataset_name"],
        ),
        ("trl.DPOTrainer", "_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
        ("trl.DPOTrainer", "compute_loss", LOSS),
        ("trl.SFTTrainer", "compute_loss", LOSS),
        ("trl.DPOTrainer", "log", ["self", "logs", "start_time"]),
        ("trl.SFTTrainer", "log", ["self", "logs", "start_time"]),
        ("trl.SFTTrainer", "get_train_dataloader", ["self"]),
        ("trl.SFTTrainer", "compute_loss_context_manager", ["self"]),
        ("trl.SFTTrainer", "_send_telemetry", ["self"]),
        ("trl.SFTTrainer", "create_model_card", ["self", "model_name", "dataset_name", "tags"]),
        ("transformers.Trainer", "training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        (
            "transformers.trainer_callback.CallbackHandler",
            "on_log",
            ["self", "args", "state", "control", "logs", "kwargs"],
        ),
        ("transformers.PreTrainedModel", "get_output_embeddings", ["self"]),
        (
            "accelerate.Accelerator",
            "unwrap_model",
            ["self", "model", "keep_fp32_wrapper", "keep_torch_compile"],
        ),
        ("accelerate.Accelerator", "autocast", ["self", "autocast_handler"]),
        ("accelerate.Accelerator", "end_training", ["self"]),
        ("peft.PeftModel", "get_base_model", ["self"]),
    ],
)
def test_what_is_overridden_or_called_has_not_moved(owner: str, name: str, parameters: list[str]) -> None:
    module, _, cls = owner.rpartition(".")
    found = list(inspect.signature(getattr(getattr(import_module(module), cls), name)).parameters)
    assert found == parameters


def test_every_method_of_ours_is_an_override_or_said_to_be_new() -> None:
    import trl

    new = {"feed", "loss_of_pass", "metric_names"}
    for ours, theirs in ((PlannedSft, trl.SFTTrainer), (PlannedDpo, trl.DPOTrainer)):
        names = {n for cls in (Planned, ours) for n in vars(cls) if not n.startswith("__")} - new
        missing = {name for name in names if not hasattr(theirs, name)}
        assert not missing, f"{theirs.__name__} has no {missing}: what overrode it is never called"


def test_transformers_leaves_the_scaling_of_the_loss_to_us() -> None:
    from transformers import Trainer

    assert Trainer.loss_is_scaled_for_ga is None
    assert "self.loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)


def made(task: str, init: Path, folder: Path, **changes: Any) -> Any:
    """A trainer as a run makes it."""
    rows: Any = SftRows([SftTokens([5, 6, 7], [-100, 6, 7])] * 3)
    loss = None
    if task == "dpo":
        rows, loss = PairRows([PairTokens([5], [6, 7], [8])] * 3), make_loss(LossSpec())
    config = TrainingConfig(dtype="fp32", **changes)
    choice = EngineChoice(recompute=changes.get("recompute") == "on")

    from transformers import AutoTokenizer

    def load() -> Any:
        model = load_model(init, config=config)
        read_inside(model.get_base_model() if config.lora else model)
        return model

    with quiet():
        arguments = make_arguments(task, config, PLAN, str(folder), choice)
        tokenizer = AutoTokenizer.from_pretrained(str(init))
        return make_trainer(
            task,
            arguments,
            load,
            tokenizer,
            Feed(rows, PLAN, 3, loss=loss),
        )


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_trl_asks_what_we_answer(
    task: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def count(cls: type, name: str) -> None:
        real = getattr(cls, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, counted)

    for name in ("get_train_dataloader", "compute_loss", "log", "_send_telemetry"):
        count(Planned, name)
    count(PlannedDpo, "_prepare_dataset")
    trainer = made(task, tiny, tmp_path)
    if task == "dpo":
        trainer.feed.reference = ([-1.0] * 3, [-1.0] * 3)
    with quiet():
        trainer.train()
    assert set(asked) == {"get_train_dataloader", "compute_loss", "log", "_send_telemetry"} | (
        {"_prepare_dataset"} if task == "dpo" else set()
    )
    assert asked.count("compute_loss") == 6  # two steps of an epoch have two rows and one, one row a pass
    assert trainer.state.global_step == PLAN.steps
    assert not (tmp_path / "README.md").exists()


def test_no_second_model_is_loaded_for_dpo(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    loads: list[Any] = []
    real = PreTrainedModel.from_pretrained.__func__

    def load(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(load))
    trainer = made("dpo", tiny, tmp_path)
    assert len(loads) == 1
    assert trainer.ref_model is None
    assert trainer.args.precompute_ref_log_probs is True


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_an_adapted_model_stays_as_it_was_made(task: str, tiny: Path, tmp_path: Path) -> None:
    trainer = made(task, tiny, tmp_path, lora=True)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert list(trainer.model.peft_config) == ["default"]
    assert trainer.model.peft_config["default"].target_modules


@pytest.mark.parametrize("wanted", [True, False])
def test_recomputation_is_on_only_where_it_was_asked_for(wanted: bool, tiny: Path, tmp_path: Path) -> None:
    trainer = made("sft", tiny, tmp_path, recompute="on" if wanted else "off")
    with quiet():
        trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) is wanted


def test_flash_attention_reads_borders_from_positions() -> None:
    # it runs on GPUs only, but this is what keeps rows apart that share a sequence
    import torch
    from transformers import modeling_flash_attention_utils as flash

    positions = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert flash._is_packed_sequence(positions, 1)
    lengths = flash.prepare_fa_kwargs_from_position_ids(positions)
    assert lengths[0][0].tolist() == [0, 3, 4, 6]
    assert not flash._is_packed_sequence(
        positions.repeat(2, 1), 2
    )  # and so all rows of a pass have to be in one line
    assert "_is_packed_sequence(position_ids" in inspect.getsource(flash._flash_attention_forward)


def test_transformers_still_keeps_zero_s_settings_where_they_are_put_aside() -> None:
    from transformers.integrations import deepspeed

    for name in ("_hf_deepspeed_config_weak_ref", "set_hf_deepspeed_config", "unset_hf_deepspeed_config"):
        assert hasattr(deepspeed, name)
