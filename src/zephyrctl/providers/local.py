"""A model folder on this machine as a provider: answers in batches, rendered exactly as in training.

Each row draws from its own generator, seeded from its messages, draw and seed, so that what shares its batch
does not decide what it says (up to float rounding of the model's own arithmetic).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.chat.render import render_prompt
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.config import canonical
from zephyrctl.errors import EnvironmentFault, MissingExtra
from zephyrctl.libraries import fit_threads, quiet, yield_cores
from zephyrctl.providers.base import Ask, Reading, Retryable, Usage, json_object, outcome_of, wire_messages
from zephyrctl.records import Message, row_seed

_ENDPOINT = "generate/1"
"""Raised when equal bodies give other answers than before."""


class LocalProvider:
    """A model folder that answers `max_batch` requests together. The model is loaded at the first batch,
    freed by `close`."""

    kind = "local"
    origin = "local"
    endpoint = _ENDPOINT

    def __init__(self, model: ModelSource, *, label: str | None = None, max_batch: int = 64) -> None:
        self.model = model
        self.label = label or model.ref
        self.world: Literal["sandbox", "real"] = "sandbox" if model.world == "sandbox" else "real"
        self.max_batch = max_batch
        self._loaded: _Loaded | None = None

    def wire(self, ask: Ask) -> dict[str, Any]:
        """The request: the model by its digest, so that an answer is replayed for these weights alone."""
        return {
            "model": self.model.digest,
            "messages": wire_messages(ask.messages),
            "temperature": ask.sampling.temperature,
            "top_p": ask.sampling.top_p,
            "max_tokens": ask.sampling.max_tokens,
            "seed": ask.sampling.seed or 0,
            "draw": ask.draw,
        }

    def read(self, raw: bytes) -> Reading:
        """The answer in a reply of `send_batch`."""
        body = json_object(raw)
        try:
            text, finish, usage = str(body["text"]), str(body["finish_reason"]), body["usage"]
            counted = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        except (KeyError, TypeError, ValueError):
            raise Retryable("bad_envelope", "not a reply of a local model") from None
        return Reading(text, outcome_of(text, cut=finish != "stop"), finish, self.label, counted)

    def send_batch(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """The replies, in the order of the bodies. Raises EnvironmentFault where the folder makes no
        model."""
        if self._loaded is None:
            self._loaded = _load(self.model)
        fit_threads(self._loaded.model.num_parameters())
        with quiet():
            return _answer(self._loaded, bodies)

    def close(self) -> None:
        """Frees the model; the next batch loads it again."""
        self._loaded = None


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    stop: frozenset[int]
    context: int


@dataclass
class _Row:
    """One answer being written."""

    prompt: list[int]
    limit: int
    temperature: float
    top_p: float
    generator: Any
    written: list[int]
    finish: str = ""


def _load(source: ModelSource) -> _Loaded:
    yield_cores()
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    on_gpu = torch.cuda.is_available()
    with quiet():
        tokenizer = load_tokenizer(source.path)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(source.path),
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EnvironmentFault(
                f"{source.path}: cannot be loaded as a language model: {lines[0][:300]}"
            ) from None
    model = model.to("cuda" if on_gpu else "cpu").eval()
    named = getattr(model.generation_config, "eos_token_id", None)
    stop = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
    return _Loaded(model, tokenizer, frozenset(stop), context)


def _answer(loaded: _Loaded, bodies: Sequence[Mapping[str, Any]]) -> list[bytes]:
    rows = [_open_row(loaded, body) for body in bodies]
    active = [row for row in rows if not row.finish]
    if active:
        _decode(loaded, active)
    replies = []
    for row, body in zip(rows, bodies, strict=True):
        text = loaded.tokenizer.decode(
            row.written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        usage = {"prompt_tokens": len(row.prompt), "completion_tokens": len(row.written)}
        reply = {"text": text, "finish_reason": row.finish, "usage": usage, "model": body["model"]}
        replies.append(json.dumps(reply, ensure_ascii=False, sort_keys=True).encode("utf-8"))
    return replies


def _open_row(loaded: _Loaded, body: Mapping[str, Any]) -> _Row:
    import torch

    messages = [Message(**message) for message in body["messages"]]
    prompt = render_prompt(loaded.tokenizer, messages)
    generator = torch.Generator()
    generator.manual_seed(row_seed(int(body["seed"]), canonical(body["messages"]), int(body["draw"])))
    limit = min(int(body["max_tokens"]), loaded.context - len(prompt))
    row = _Row(prompt, limit, float(body["temperature"]), float(body["top_p"]), generator, [])
    if limit < 1:
        row.finish = "length"
    return row


def _decode(loaded: _Loaded, rows: list[_Row]) -> None:
    """Writes all rows to their end, one token a step; rows that are done leave the batch."""
    import torch
    from transformers import DynamicCache

    device = loaded.model.device
    pad = loaded.tokenizer.pad_token_id
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[pad] * (width - len(r.prompt)) + r.prompt for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=loaded.model.config)
    with torch.inference_mode():
        while rows:
            logits = loaded.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = _choose(logits.float().cpu(), rows)
            kept = [place for place, row in enumerate(rows) if not _take(row, chosen[place], loaded.stop)]
            if len(kept) < len(rows):
                rows = [rows[place] for place in kept]
                if not rows:
                    return
                index = torch.tensor(kept, device=device)
                mask, positions = mask[index], positions[index]
                cache.batch_select_indices(index)
            ids = torch.tensor([[row.written[-1]] for row in rows], device=device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
            positions = positions[:, -1:] + 1


def _take(row: _Row, token: int, stop: frozenset[int]) -> bool:
    """Adds a token to the row; True where the answer is finished by it. The closing token is not part of the
    text."""
    if token in stop:
        row.finish = "stop"
        return True
    row.written.append(token)
    if len(row.written) >= row.limit:
        row.finish = "length"
    return bool(row.finish)


def _choose(logits: Any, rows: Sequence[_Row]) -> list[int]:
    """The next token of every row: the likeliest at temperature 0, else drawn by the Gumbel-max rule with
    the row's noise."""
    import torch

    scores = logits.clone()
    for place, row in enumerate(rows):
        if row.temperature <= 0:
            continue
        line = _nucleus(logits[place] / row.temperature, row.top_p)
        uniform = torch.rand(line.shape, generator=row.generator, dtype=torch.float64).clamp_(min=1e-300)
        scores[place] = (line.double() - torch.log(-torch.log(uniform))).float()
    return [int(token) for token in scores.argmax(dim=-1)]


def _nucleus(line: Any, top_p: float) -> Any:
    """The logits with all tokens outside the smallest set of probability `top_p` at minus infinity."""
    import torch

    if top_p >= 1.0:
        return line
    ordered, order = torch.sort(line, descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(-1) - torch.softmax(ordered, dim=-1)
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(line).scatter_(0, order, ordered)
