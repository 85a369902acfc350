"""A reward model on this machine: a sequence classifier of transformers with a single output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyrctl.errors import EnvironmentFault, IntegrityError, MissingExtra, UsageError
from zephyrctl.judges.base import Parsed
from zephyrctl.libraries import fit_threads, quiet, yield_cores
from zephyrctl.records import Message

_BATCH = 16
_KIND = "ForSequenceClassification"
_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own state a number beyond this one."""


def check_reward_model(folder: Path) -> None:
    """Raises MissingExtra without torch and transformers, UsageError where `config.json` describes something other
    than a classifier with one output, IntegrityError where it cannot be read. Loads nothing."""
    from importlib.util import find_spec

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingExtra(package, "train")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder}/config.json cannot be read: {type(error).__name__}") from None
    architecture = str((config.get("architectures") or ["nothing it names"])[0])
    if not architecture.endswith(_KIND):
        raise UsageError(
            f"{folder} holds {architecture}; a reward model is a …{_KIND} with one output",
            hint="a language model rates as a judge: --scorer llm --teacher MODEL",
        )
    labels = len(config.get("id2label") or {}) or int(config.get("num_labels", 2))
    if labels != 1:
        raise UsageError(
            f"{folder} has {labels} outputs: which of them is the score is not known; one is needed"
        )


def has_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder brings a chat template."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(settings.get("chat_template"))


@dataclass
class RewardModel:
    """A loaded model. `limit` is the longest input in tokens; `pads` says whether it can tell padding from text."""

    model: Any
    tokenizer: Any
    limit: int
    pads: bool

    def score(self, prompt: Sequence[Message], texts: Sequence[str]) -> list[float | Parsed]:
        """The model's value for each of `texts` as the answer to `prompt`; a result without a value where it is too
        long to be read whole."""
        inputs = [self._tokens(prompt, text) for text in texts]
        values: list[float | Parsed] = [
            Parsed(reason=f"too long: {len(ids)} tokens, the model reads {self.limit}") for ids in inputs
        ]
        fits = [i for i, ids in enumerate(inputs) if len(ids) <= self.limit]
        step = _BATCH if self.pads else 1
        for start in range(0, len(fits), step):
            batch = fits[start : start + step]
            for i, value in zip(batch, self._values([inputs[i] for i in batch]), strict=True):
                values[i] = value
        return values

    def _tokens(self, prompt: Sequence[Message], text: str) -> list[int]:
        if self.tokenizer.chat_template:
            from zephyrctl.chat.render import encode, render_text

            dialogue = [*prompt, Message(role="assistant", content=text)]
            return encode(self.tokenizer, render_text(self.tokenizer, dialogue))
        question = "\n\n".join(m.content for m in prompt)
        return list(self.tokenizer(question, text)["input_ids"])

    def _values(self, inputs: Sequence[list[int]]) -> list[float]:
        import torch

        longest = max(map(len, inputs))
        pad = self.tokenizer.pad_token_id if self.pads else 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in inputs], device=self.model.device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in inputs], device=self.model.device
        )
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask).logits
        return [float(value) for value in logits.float().reshape(-1).tolist()]


def load_reward_model(folder: Path) -> RewardModel:
    """The model in a folder, on the GPU (bfloat16) where there is one, else on the CPU (float32).

    A dialogue is rendered with the tokenizer's chat template; without one, prompt and answer go in as the
    tokenizer's own pair of texts. Raises EnvironmentFault where the files make no model, or where the output layer
    is not among the weights, so that every score would be random.
    """
    yield_cores()
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    on_gpu = torch.cuda.is_available()
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EnvironmentFault(
                f"{folder}: cannot be loaded as a reward model: {lines[0][:300]}"
            ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise EnvironmentFault(
            f"{folder}: the weights lack {missing[0]}: it would start at random, and so would every score"
        )
    fit_threads(model.num_parameters())
    context = int(getattr(model.config, "max_position_embeddings", 0) or _NO_LIMIT)
    # a model that names no padding takes the last token as the end of the text, so nothing may follow it
    pad = getattr(model.config, "pad_token_id", None)
    pads = pad is not None and pad == tokenizer.pad_token_id
    limit = min(context, int(tokenizer.model_max_length))
    return RewardModel(model.to("cuda" if on_gpu else "cpu").eval(), tokenizer, limit, pads)
