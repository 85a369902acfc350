"""Writing many answers at once with one model: batches, sampling, stop strings, log-probabilities.

Each row draws from its own generator, seeded from its messages, draw and seed, so that what shares its batch
does not decide what it says (up to float rounding of the model's own arithmetic).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyrctl.chat.render import render_prompt
from zephyrctl.chat.tokenizer import load_tokenizer, stop_ids
from zephyrctl.config import canonical
from zephyrctl.errors import EnvironmentFault, MissingExtra, UsageError
from zephyrctl.libraries import quiet, yield_cores
from zephyrctl.records import Message, row_seed

_COLD = 1e-5
"""Below this temperature the likeliest token is taken: logits divided by less would overflow."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to write: its closing tokens, and the most tokens that a prompt and its answer may have
    together."""

    model: Any
    tokenizer: Any
    stop: frozenset[int]
    context: int


@dataclass(frozen=True)
class _Noted:
    """A token written, its log-probability under the model, and the likeliest tokens with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class _Row:
    """One answer being written."""

    prompt: list[int]
    limit: int
    temperature: float
    top_p: float
    generator: Any
    written: list[int]
    stop: tuple[str, ...] = ()
    alternatives: int | None = None
    """How many likely tokens to note beside each one written; None = note nothing."""
    finish: str = ""
    text: str | None = None
    """The answer up to the stop string that ended it; None where none did."""
    noted: list[_Noted] = field(default_factory=list)


def load_model(folder: Path) -> Loaded:
    """The model in a folder, on the GPU where there is one.

    Raises MissingExtra without torch, EnvironmentFault where the folder makes no model.
    """
    yield_cores()
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra(error.name or "torch", "train") from None
    on_gpu = torch.cuda.is_available()
    with quiet():
        tokenizer = load_tokenizer(folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if on_gpu else torch.float32,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EnvironmentFault(
                f"{folder}: cannot be loaded as a language model: {lines[0][:300]}"
            ) from None
    model = model.to("cuda" if on_gpu else "cpu").eval()
    context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
    return Loaded(model, tokenizer, _stops(tokenizer, model), context)


def _stops(tokenizer: Any, model: Any) -> frozenset[int]:
    """The tokens at which an answer ends; a template that closes no turn leaves those that the model names."""
    named = getattr(model.generation_config, "eos_token_id", None)
    try:
        return frozenset(stop_ids(tokenizer, named))
    except UsageError:
        known = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
        return frozenset(known - {None})


def answer_all(loaded: Loaded, bodies: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """One reply for each body, in their order, as JSON: text, finish_reason, usage, model, and logprobs where
    the body asks for them."""
    rows = [_open_row(loaded, body) for body in bodies]
    active = [row for row in rows if not row.finish]
    if active:
        _decode(loaded, active)
    replies = []
    for row, body in zip(rows, bodies, strict=True):
        text = _text(loaded.tokenizer, row.written) if row.text is None else row.text
        usage = {"prompt_tokens": len(row.prompt), "completion_tokens": len(row.written)}
        reply = {"text": text, "finish_reason": row.finish, "usage": usage, "model": body["model"]}
        if row.alternatives is not None:
            reply["logprobs"] = _spelled(loaded.tokenizer, row.noted)
        replies.append(json.dumps(reply, ensure_ascii=False, sort_keys=True).encode("utf-8"))
    return replies


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _spelled(tokenizer: Any, noted: Sequence[_Noted]) -> list[dict[str, Any]]:
    def spell(token: int) -> str:
        return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))

    return [
        {
            "token": spell(one.token),
            "logprob": round(one.logprob, 6),
            "top": [[spell(token), round(logprob, 6)] for token, logprob in one.top],
        }
        for one in noted
    ]


def _open_row(loaded: Loaded, body: Mapping[str, Any]) -> _Row:
    import torch

    messages = [Message(**message) for message in body["messages"]]
    prompt = render_prompt(loaded.tokenizer, messages)
    generator = torch.Generator()
    generator.manual_seed(row_seed(int(body["seed"]), canonical(body["messages"]), int(body["draw"])))
    limit = min(int(body["max_tokens"]), loaded.context - len(prompt))
    row = _Row(
        prompt,
        limit,
        float(body["temperature"]),
        float(body["top_p"]),
        generator,
        [],
        stop=tuple(body.get("stop", ())),
        alternatives=body.get("logprobs"),
    )
    if limit < 1:
        row.finish = "length"
    return row


def _decode(loaded: Loaded, rows: list[_Row]) -> None:
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
            logits = logits.float().cpu()
            chosen = _choose(logits, rows)
            _note(logits, rows, chosen, loaded.stop)
            kept = [place for place, row in enumerate(rows) if not _take(loaded, row, chosen[place])]
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


def _take(loaded: Loaded, row: _Row, token: int) -> bool:
    """Adds a token to the row; True where the answer is finished by it. Neither the closing token nor a stop
    string is part of the text."""
    if token in loaded.stop:
        row.finish = "stop"
        return True
    row.written.append(token)
    if row.stop and _stopped(loaded.tokenizer, row):
        row.finish = "stop"
    elif len(row.written) >= row.limit:
        row.finish = "length"
    return bool(row.finish)


def _stopped(tokenizer: Any, row: _Row) -> bool:
    """Whether a stop string stands in what is written; then `row.text` is what comes before it."""
    # No token is shorter than a byte, so a stop string that has just been completed lies in these last ones.
    window = max(len(text.encode("utf-8")) for text in row.stop) + 4
    tail = _text(tokenizer, row.written[-window:])
    if not any(text in tail for text in row.stop):
        return False
    whole = _text(tokenizer, row.written)
    places = [whole.index(text) for text in row.stop if text in whole]
    if places:
        row.text = whole[: min(places)]
    return bool(places)


def _note(logits: Any, rows: Sequence[_Row], chosen: Sequence[int], closing: frozenset[int]) -> None:
    """Notes log-probabilities, at temperature 1 and over all tokens, for the rows that ask for them."""
    import torch

    for place, row in enumerate(rows):
        if row.alternatives is None or chosen[place] in closing:
            continue
        line = torch.log_softmax(logits[place], dim=-1)
        values, tokens = line.topk(min(row.alternatives, line.numel()))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        row.noted.append(_Noted(chosen[place], float(line[chosen[place]]), top))


def _choose(logits: Any, rows: Sequence[_Row]) -> list[int]:
    """The next token of every row: the likeliest at temperature 0, else drawn by the Gumbel-max rule with
    the row's noise."""
    import torch

    scores = logits.clone()
    for place, row in enumerate(rows):
        if row.temperature < _COLD:
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
