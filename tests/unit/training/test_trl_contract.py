"""What is overridden in TRL and transformers must still be there under these names."""

from __future__ import annotations

import inspect

import pytest


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        ("DPOTrainer", "_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
        ("DPOTrainer", "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("SFTTrainer", "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("SFTTrainer", "get_train_dataloader", ["self"]),
        ("SFTTrainer", "get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
    ],
)
def test_overridden_methods_have_not_moved(owner: str, name: str, parameters: list[str]) -> None:
    import trl

    found = list(inspect.signature(getattr(getattr(trl, owner), name)).parameters)
    assert found == parameters


def test_what_the_trainers_read_is_where_we_put_it() -> None:
    from trl.trainer import dpo_trainer, sft_trainer

    dpo, sft = inspect.getsource(dpo_trainer), inspect.getsource(sft_trainer)
    for name in ("self.precompute_ref_logps", "ref_chosen_logps", "prompt_ids", "self._metrics"):
        assert name in dpo
    for name in ("skip_prepare_dataset", "seq_lengths", "self._metrics"):
        assert name in sft


def test_the_collator_reads_our_columns() -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 1], "rejected_ids": [8], "ref_chosen_logps": -1.5,
            "ref_rejected_logps": -2.5}  # fmt: skip
    batch = DataCollatorForPreference(pad_token_id=0)([pair])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [5, 6, 8, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5]
