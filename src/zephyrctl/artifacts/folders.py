"""Data folders as the Hub lays them out:

`data/train-00000-of-00001.parquet`, `train_prefs.jsonl`, and the like.
"""

from __future__ import annotations

import re
from pathlib import Path

from zephyrctl.artifacts.readers import is_data_file
from zephyrctl.errors import UsageError, WrongKind

_SPLIT = re.compile(r"(train|test)(?:_(sft|prefs|gen))?(?:[-_.].*)?")
_TAIL = {"sft": "sft", "prefs": "prefs"}


def data_files(folder: Path, shown: str, kind: str) -> list[tuple[Path, str, str | None]]:
    """`(path, name in messages, split)` of the files to read for `kind`, train first; split None where names
    tell none.

    Files stand under `data/`, or at the top. Of `train_sft`, `train_prefs` and `train_gen` the one of the
    kind is taken. Raises WrongKind for a model folder, UsageError for a folder in Arrow's own format or
    without data files.
    """
    if (folder / "state.json").is_file() or list(folder.glob("*.arrow")):
        raise UsageError(
            f"{shown}: a folder of save_to_disk, which holds no Parquet",
            hint='write it as Parquet: dataset["train"].to_parquet("train.parquet")',
        )
    for place in (folder / "data", folder):
        found = (
            sorted(p for p in place.iterdir() if p.is_file() and is_data_file(p)) if place.is_dir() else []
        )
        found = [p for p in found if not _is_description(p)]
        if found:
            return _by_split(found, folder, shown, kind)
    if (folder / "config.json").is_file():
        raise WrongKind(
            f"{shown} is a model folder, {kind} data expected", hint="a model goes to --init or --model"
        )
    raise UsageError(f"{shown}: no data files (*.parquet, *.jsonl) under data/ or at the top")


def _by_split(found: list[Path], folder: Path, shown: str, kind: str) -> list[tuple[Path, str, str | None]]:
    named = [(path, match) for path in found if (match := _SPLIT.fullmatch(path.name)) is not None]
    if not named:
        return [(path, _name(path, folder, shown), None) for path in found]
    tails = {match.group(2) for _, match in named}
    wanted = _TAIL.get(kind)
    # prompts may come from either; a folder with plain names has no tails at all
    tail = (
        wanted
        if wanted in tails
        else None
        if None in tails
        else next(t for t in ("sft", "prefs", "gen") if t in tails)
    )
    taken = [(p, _name(p, folder, shown), m.group(1)) for p, m in named if m.group(2) == tail]
    return sorted(taken, key=lambda item: (item[2] != "train", item[1]))


def _is_description(path: Path) -> bool:
    return path.name in ("dataset_info.json", "dataset_infos.json", "config.json", "README.txt") or (
        path.name.endswith(".json") and path.name.startswith(("tokenizer", "special_tokens", "generation_"))
    )


def _name(path: Path, folder: Path, shown: str) -> str:
    return f"{shown.rstrip('/')}/{path.relative_to(folder).as_posix()}"
