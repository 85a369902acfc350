"""Whether two checkpoints of the same step are the same, bit for bit: the proof that a run resumes as it went on.

Files with equal bytes are equal. Where bytes differ, tensors, numbers and texts inside decide, because containers
may hold the same values in another order or with another folder's name. Left out are what no repetition can
reproduce: times, and the trainer's arguments, which name folders.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyrctl.training import checkpoint

_NOT_COMPARED = frozenset({"timing.jsonl", "training_args.bin", "README.md"})
_SPEED = ("_runtime", "_per_second")
_BESIDE = frozenset({"TrainerControl", "total_flos"})
"""What the trainer notes and trains nothing with: whether it was about to save or to stop, which a signal changes; and
its own estimate of arithmetic, which under ZeRO-3 counts the weights that happen to be gathered."""
_SETS = frozenset({"target_modules", "modules_to_save"})
"""Lists of PEFT's that are sets to it, and are written in an order that every process makes up anew."""
_TORCH = (".pt", ".pth", ".bin")
_JSON = (".json", ".jsonl")
_SHARDED = ".metadata"
"""The file that makes a folder one of torch's distributed checkpoints."""


def compare_checkpoints(a: Path, b: Path) -> list[str]:
    """What differs between the checkpoints in the folders `a` and `b`, one sentence each; none = the same bits.

    Weights, optimiser and scheduler states, states of random generators and metrics are compared, of a single
    process as of DDP, FSDP and ZeRO. Pickles among the files are read, so both folders must be checkpoints that
    this program wrote (`checkpoint.fault` is None). Raises OSError where a file cannot be read.
    """
    ours, theirs = _comparable(a), _comparable(b)
    found = [f"{name} is only in {a}" for name in sorted(ours - theirs)]
    found += [f"{name} is only in {b}" for name in sorted(theirs - ours)]
    known_a, known_b = _hashes(a), _hashes(b)
    differing = [
        name
        for name in sorted(ours & theirs)
        if known_a.get(name, a) != known_b.get(name, b) and not filecmp.cmp(a / name, b / name, shallow=False)
    ]
    sharded = {Path(name).parent for name in ours if Path(name).name == _SHARDED}
    for folder in sorted({Path(name).parent for name in differing} & sharded):
        found += [f"{folder}: {what}" for what in _walk(_shards(a / folder), _shards(b / folder))]
    for name in differing:
        if Path(name).parent not in sharded:
            found += [f"{name}: {what}" for what in _inside(a / name, b / name)]
    return found


def _comparable(folder: Path) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in _NOT_COMPARED and not p.name.startswith(checkpoint.SEAL)
    }


def _hashes(folder: Path) -> dict[str, Any]:
    """The hashes a finished checkpoint carries; none for another folder."""
    try:
        return {name: entry["sha256"] for name, entry in checkpoint.read_seal(folder)["files"].items()}
    except (OSError, ValueError):
        return {}


def _inside(a: Path, b: Path) -> Iterator[str]:
    if a.suffix == ".safetensors":
        return _safetensors(a, b)
    if a.suffix in _TORCH:
        return _walk(_unpickled(a), _unpickled(b))
    if a.suffix in _JSON:
        return _walk(_json(a), _json(b))
    return iter(["the bytes differ"])


def _safetensors(a: Path, b: Path) -> Iterator[str]:
    """Tensor by tensor, so that never two whole models are in memory."""
    from safetensors import safe_open

    with safe_open(a, "pt") as left, safe_open(b, "pt") as right:
        names, others = set(left.keys()), set(right.keys())
        yield from _missing(names, others)
        for name in sorted(names & others):
            yield from _walk(left.get_tensor(name), right.get_tensor(name), name)


def _unpickled(path: Path) -> Any:
    import torch

    # DeepSpeed's files hold objects of its own, which a weights-only reader refuses
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def _shards(folder: Path) -> dict[str, Any]:
    """The whole state that a distributed checkpoint's files hold together, read by one process."""
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()  # type: ignore[no-untyped-call]
    _load_state_dict(state, storage_reader=FileSystemReader(folder), planner=planner, no_dist=True)
    return state


def _json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    value = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return _without_chance(value)


def _without_chance(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _BESIDE and not str(k).endswith(_SPEED)}
        return {
            k: sorted(v) if k in _SETS and isinstance(v, list) else _without_chance(v)
            for k, v in kept.items()
        }
    return [_without_chance(v) for v in value] if isinstance(value, list) else value


def _missing(names: set[Any], others: set[Any], at: str = "") -> Iterator[str]:
    for name in sorted(names ^ others, key=str):
        yield f"{_join(at, name)} is in one of the two only"


def _walk(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """The places where two nested values differ."""
    if type(a) is not type(b):
        yield f"{at or 'the value'} is a {type(a).__name__} in one, a {type(b).__name__} in the other"
    elif isinstance(a, Mapping):
        yield from _missing(set(a), set(b), at)
        for name in (name for name in a if name in b):
            yield from _walk(a[name], b[name], _join(at, name))
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{at or 'the value'} has {len(a)} entries in one, {len(b)} in the other"
        for place, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from _walk(x, y, _join(at, place))
    elif hasattr(a, "dtype") and hasattr(a, "shape"):
        yield from _arrays(a, b, at)
    elif hasattr(a, "__dict__") and not isinstance(a, type) and not callable(a):
        yield from _walk(vars(a), vars(b), at)
    elif not _same(a, b):
        yield f"{at or 'the value'} is {str(a)[:60]} in one, {str(b)[:60]} in the other"


def _same(a: Any, b: Any) -> bool:
    """Equal, with NaN equal to itself and 0.0 unlike -0.0."""
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def _arrays(a: Any, b: Any, at: str) -> Iterator[str]:
    """Tensors and arrays by their bits."""
    import torch

    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        yield f"{at} is {a.dtype}{list(a.shape)} in one, {b.dtype}{list(b.shape)} in the other"
        return
    left, right = torch.as_tensor(a).detach().contiguous(), torch.as_tensor(b).detach().contiguous()
    bits = left.reshape(-1, 1).view(torch.uint8), right.reshape(-1, 1).view(torch.uint8)
    count = int((bits[0] != bits[1]).any(dim=1).sum())
    if count:
        largest = float((left.double() - right.double()).abs().max())
        yield f"{at} differs in {count} of {left.numel()} values, by {largest:.3g} at most"


def _join(at: str, name: object) -> str:
    return f"{at}/{name}" if at else str(name)
