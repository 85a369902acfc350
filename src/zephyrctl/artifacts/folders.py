"""Data folders as the Hub lays them out:

`data/train-00000-of-00001.parquet`, `train_prefs.jsonl`, and the like. Which files are read for which kind is decided
by their names alone, so that a folder on this machine and one on the Hub are treated alike.

The names begin with the split. Where splits come in variants, `train_sft`, `train_prefs`, `train_gen`, one is taken:
`sft` for dialogues, `prefs` for pairs, and for prompts `gen`, else `sft`, else `prefs`. `validation` (`dev`, `val`)
is the test split where there is no `test`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zephyrctl.artifacts.readers import is_data_file
from zephyrctl.errors import UsageError, WrongKind

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?:_(sft|prefs|gen))?(?:[-_.].*)?")
_TAILS = {"sft": ("sft", "prefs", "gen"), "prefs": ("prefs",), "prompts": ("gen", "sft", "prefs")}
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "config.json", "README.txt")


@dataclass(frozen=True)
class Chosen:
    """The files to read, train first, as `(relative path, split)`; split None where names tell none.

    `rule` says in words which of several were taken, empty where all are read.
    """

    files: list[tuple[str, str | None]]
    rule: str


def data_files(folder: Path, shown: str, kind: str) -> tuple[list[tuple[Path, str, str | None]], str]:
    """`(path, name in messages, split)` of the files to read for `kind`, train first; and the rule by which they
    were taken, as of `choose`.

    Raises WrongKind for a model folder, UsageError for a folder in Arrow's own format or without data files.
    """
    if (folder / "state.json").is_file() or list(folder.glob("*.arrow")):
        raise UsageError(
            f"{shown}: a folder of save_to_disk, which holds no Parquet",
            hint='write it as Parquet: dataset["train"].to_parquet("train.parquet")',
        )
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.glob("*")) if p.is_file()]
    names += [p.relative_to(folder).as_posix() for p in sorted(folder.glob("data/*")) if p.is_file()]
    chosen = choose(names, kind)
    if chosen is None:
        if (folder / "config.json").is_file():
            raise WrongKind(
                f"{shown} is a model folder, {kind} data expected", hint="a model goes to --init or --model"
            )
        raise no_files(shown, [p.relative_to(folder).as_posix() for p in sorted(folder.glob("*/*"))])
    base = shown.rstrip("/")
    return [(folder / name, f"{base}/{name}", split) for name, split in chosen.files], chosen.rule


def choose(names: Sequence[str], kind: str) -> Chosen | None:
    """Which of a folder's files to read for `kind`: those under `data/`, else those at the top; None where there are
    none."""
    for place in ("data", ""):
        found = sorted(n for n in names if _folder(n) == place and _is_data(PurePosixPath(n).name))
        if found:
            return _by_split(found, kind)
    return None


def no_files(shown: str, inside: Sequence[str]) -> UsageError:
    """The error for a folder without data files at the places where they are looked for."""
    folders = sorted({_folder(n) for n in inside if _folder(n) and _is_data(PurePosixPath(n).name)})
    hint = "data lies in: " + ", ".join(f"{shown.rstrip('/')}/{f}" for f in folders[:8]) if folders else None
    return UsageError(f"{shown}: no data files (*.parquet, *.jsonl) under data/ or at the top", hint=hint)


def _by_split(found: list[str], kind: str) -> Chosen:
    named = [(n, m) for n in found if (m := _SPLIT.fullmatch(PurePosixPath(n).name)) is not None]
    if not named:
        return Chosen([(name, None) for name in found], "")
    tail = _tail({match.group(2) for _, match in named}, kind)
    variant = [(n, m.group(1)) for n, m in named if m.group(2) == tail]
    tests = {split for _, split in variant} - {"train"}
    held_out = "test" if "test" in tests or not tests else sorted(tests)[-1]
    taken = [(n, "test" if s == held_out else s) for n, s in variant if s in ("train", held_out)]
    files: list[tuple[str, str | None]] = [*sorted(taken, key=lambda item: (item[1] != "train", item[0]))]
    return Chosen(files, _rule(len(found), len(files), tail, held_out))


def _tail(tails: set[str | None], kind: str) -> str | None:
    """Which variant of the splits is read; None = the plain ones."""
    order = _TAILS.get(kind, ())
    if kind in ("sft", "prefs") and kind in tails:
        return kind
    if None in tails:
        return None
    return next((t for t in (*order, "sft", "prefs", "gen") if t in tails), None)


def _rule(of: int, taken: int, tail: str | None, held_out: str) -> str:
    parts = []
    if taken < of:
        parts.append(f"{taken} of {of} files, *_{tail}" if tail else f"{taken} of {of} files")
    if held_out != "test":
        parts.append(f"{held_out} is the test split")
    return "; ".join(parts)


def _folder(name: str) -> str:
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else parent


def _is_data(name: str) -> bool:
    described = name in _DESCRIPTIONS or (
        name.endswith(".json") and name.startswith(("tokenizer", "special_tokens", "generation_"))
    )
    return is_data_file(Path(name)) and not described
