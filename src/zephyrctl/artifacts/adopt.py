"""Data as stages read it: an artifact, or a file or folder of the user's own whose shape is detected."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zephyrctl.artifacts import readers, shapes
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.digests import hash_file
from zephyrctl.artifacts.folders import data_files
from zephyrctl.artifacts.hub import PREFIX, fetch_data
from zephyrctl.artifacts.manifest import FILE_NAME, InputRef, World
from zephyrctl.artifacts.models import artifact_at
from zephyrctl.artifacts.ref import looks_like_ref
from zephyrctl.artifacts.shapes_messages import SaysNothing
from zephyrctl.artifacts.store import MAKERS, Store
from zephyrctl.config import digest_of
from zephyrctl.errors import BadRow, IntegrityError, RefNotFound, StageRejected, UsageError, WrongKind
from zephyrctl.events import Emit, Warning_, silent
from zephyrctl.records import ROW_TYPES, Record

OnBadRow = Literal["fail", "skip"]
Located = tuple[str, str | None, Record]
File = tuple[Path, str, str | None]
"""A data file: where it lies, its name in messages, and the split that its name tells."""
_ASKING = ("prompts", "sft", "feedback", "prefs")
_SHOWN = 20


@dataclass
class Source:
    """Rows to read, whatever they come from.

    `shape` says in words what was found; `rejects` what was skipped.
    """

    kind: str
    ref: str
    digest: str
    world: World
    artifact: Artifact | None
    shape: str
    rejects: list[dict[str, Any]] = field(default_factory=list)
    _read: Callable[[list[dict[str, Any]]], Iterator[Located]] = field(
        repr=False, default=lambda rejects: iter(())
    )

    def input(self, role: str) -> InputRef:
        """This source as an input of a step."""
        kind = self.artifact.kind if self.artifact is not None else self.kind
        return InputRef(role=role, ref=self.ref, digest=self.digest, kind=kind)

    def inputs(self, role: str) -> list[InputRef]:
        """This source as inputs of a step: one for each thing it is mixed from."""
        return [self.input(role)]

    @property
    def in_order(self) -> bool:
        """Whether the order of the rows is the user's own, so that the first ones are meant where fewer are asked
        for."""
        return self.artifact is None

    def shares(self) -> list[dict[str, Any]]:
        """What each part of a mixture gave, for the manifest; empty for a source that is no mixture."""
        return []

    def rows(self) -> Iterator[Located]:
        """`(where, split, row)` in stored order; split None = not split yet.

        `rejects` is filled anew on the way. Raises IntegrityError when what is read differs from what was
        opened.
        """
        self.rejects.clear()
        return self._read(self.rejects)


def open_source(
    store: Store, text: str, kind: str, *, on_bad_row: OnBadRow = "fail", emit: Emit = silent
) -> Source:
    """The rows of kind `kind` that `text` names: a ref, a path, `hf://org/name`, or `-` for JSONL on stdin.

    An outside file is read once from end to end first, so that a bad row is found before any work. Rows in good
    order that say nothing (a pair of twice the same text) are always left out, counted and told. Raises
    RefNotFound, WrongKind naming the command that makes the right kind, BadRow naming file and line (the
    count and the first 20), StageRejected when no usable row is left; for the Hub as `fetch_data`.
    """
    if kind not in ROW_TYPES:
        raise UsageError(f"rows of kind '{kind}' cannot be read", hint="known: " + ", ".join(ROW_TYPES))
    if not text.strip():
        raise UsageError(
            f"no source of {kind} is named: the name is empty",
            hint="a ref, a file, a folder, hf://org/name, or -",
        )
    if text.startswith(PREFIX):
        data = fetch_data(text, kind, emit)
        return _outside(data.ref, kind, on_bad_row, data.files, form=_form("Hub", data.rule), emit=emit)
    if text == "-":
        return _from_stdin(kind, on_bad_row, emit)
    if _is_path(store, text):
        return _from_path(store, text, kind, on_bad_row, emit)
    return from_artifact(store.resolve(text), kind)


def from_artifact(artifact: Artifact, kind: str, *, ref: str | None = None) -> Source:
    """An artifact as a source of `kind`; prompts are also taken from sft, feedback and prefs artifacts.

    Raises WrongKind naming the command that makes the right kind.
    """
    found = artifact.kind
    if found != kind and not (kind == "prompts" and found in _ASKING):
        raise WrongKind(
            f"{kind} expected, {artifact.ref} is a {found} artifact", hint=_remedy(kind, artifact)
        )

    def read(rejects: list[dict[str, Any]]) -> Iterator[Located]:
        for where, split, row in artifact.rows():
            yield where, split, shapes.as_prompt(row) if kind == "prompts" else row

    shape = f"{found} artifact" + (", its prompts" if found != kind else "")
    return Source(
        kind, ref or str(artifact.ref), artifact.digest, artifact.manifest.world, artifact, shape, _read=read
    )


def _remedy(kind: str, artifact: Artifact) -> str:
    ref, found = str(artifact.ref), artifact.kind
    if (kind, found) == ("prefs", "feedback"):
        return f"zephyrctl binarize --feedback {ref}"
    if (kind, found) == ("sft", "prefs"):
        return "binarize also makes prefs-best, the best answers as sft data: --data prefs-best"
    if (kind, found) == ("sft", "prompts"):
        return f"zephyrctl gen-sft --prompts {ref} --teacher …"
    if kind in ("prefs", "feedback") and found in ("prompts", "sft"):
        then = ", then zephyrctl binarize" if kind == "prefs" else ""
        return f"zephyrctl gen-prefs --prompts {ref} --teacher …{then}"
    if found == "model":
        return f"a model goes to --init or --model; {kind} data is made by: {MAKERS[kind]}"
    return f"{kind} data is made by: {MAKERS[kind]}"


def _is_path(store: Store, text: str) -> bool:
    path = Path(text).expanduser()
    if (
        text.startswith(("./", "../", "/", "~"))
        or text in (".", "..")
        or "/" in text
        or readers.is_data_file(path)
    ):
        return True
    if not looks_like_ref(text):
        return path.exists()
    if path.exists() and not store.numbers(text):
        raise UsageError(
            f"'{text}' is no artifact here, but there is a path of that name", hint=f"type ./{text}"
        )
    return False


def _from_path(store: Store, text: str, kind: str, on_bad_row: OnBadRow, emit: Emit) -> Source:
    path = Path(text).expanduser()
    if not path.exists():
        hub = f", or {PREFIX}{text} for the Hub's" if text.count("/") == 1 and text[0] not in "./~" else ""
        raise RefNotFound(
            f"no such file or folder: {text}",
            hint=f"give a path that exists, or the name of an artifact (zephyrctl artifacts ls){hub}",
        )
    if path.is_dir():
        if (path / FILE_NAME).is_file():
            artifact = artifact_at(store, path)
            known = artifact.path.parent.parent == store.root
            return from_artifact(artifact, kind, ref=str(artifact.ref) if known else text)
        files, rule = data_files(path, text, kind)
        return _outside(text, kind, on_bad_row, files, form=_form("folder", rule), emit=emit)
    if path.stat().st_size == 0:
        raise BadRow(f"{text}:1", "the file is empty")
    return _outside(text, kind, on_bad_row, [(path, text, None)], form=_ending(path), emit=emit)


def _from_stdin(kind: str, on_bad_row: OnBadRow, emit: Emit) -> Source:
    spool = tempfile.NamedTemporaryFile(prefix="zephyrctl-", suffix=".jsonl")  # noqa: SIM115 - lives as long as the source
    while block := sys.stdin.buffer.read(1 << 20):
        spool.write(block)
    spool.flush()
    if not spool.tell():
        raise BadRow("stdin:1", "nothing was given")
    source = _outside("-", kind, on_bad_row, [(Path(spool.name), "stdin", None)], form="jsonl", emit=emit)
    inner = source._read

    def read(rejects: list[dict[str, Any]]) -> Iterator[Located]:
        # holding the spool here keeps the file until the source itself is gone
        return inner(rejects) if not spool.closed else iter(())

    source._read = read
    return source


def _form(place: str, rule: str) -> str:
    return f"{place} ({rule})" if rule else place


def _ending(path: Path) -> str:
    return next((e.lstrip(".") for e in readers.SUFFIXES if path.name.endswith(e)), "file")


def _outside(
    text: str, kind: str, on_bad_row: OnBadRow, files: list[File], *, form: str, emit: Emit = silent
) -> Source:
    files = [(path.absolute(), shown, split) for path, shown, split in files]
    before = [_state(path) for path, _, _ in files]
    digest = _digest(files)
    shape, idle = _validate(kind, files, on_bad_row, text)
    if idle:
        emit(Warning_(f"{text}: {idle.total():,} rows say nothing and are left out ({', '.join(idle)})"))

    def read(rejects: list[dict[str, Any]]) -> Iterator[Located]:
        if [_state(path) for path, _, _ in files] != before:
            raise IntegrityError(
                f"{text} was changed while it was being read", hint="run the same command again"
            )
        for path, shown, split in files:
            for where, found in _convert(kind, shape, path, shown):
                if isinstance(found, Record):
                    yield where, split, found
                elif isinstance(found, SaysNothing):
                    rejects.append({"where": where, "reason": found.reason, "detail": str(found), "row": ""})
                elif on_bad_row == "fail":
                    raise found
                else:
                    rejects.append(reject(found))

    return Source(kind, text, digest, "real", None, f"{form}: {shape}", _read=read)


def reject(error: BadRow) -> dict[str, Any]:
    """A bad row as the rejects table keeps it."""
    return {"where": error.where, "reason": "bad row", "detail": error.why, "row": ""}


def _validate(kind: str, files: list[File], on_bad_row: OnBadRow, text: str) -> tuple[str, Counter[str]]:
    """The shape of the rows, after every row of every file was tried; and how many say nothing, by reason."""
    shape, good = "", 0
    bad: list[BadRow] = []
    idle: Counter[str] = Counter()
    for path, shown, _ in files:
        for where, raw in readers.read_file(path, shown):
            if isinstance(raw, BadRow):
                bad.append(raw)
                continue
            try:
                shape = shape or shapes.detect(kind, raw)
                shapes.convert(kind, shape, raw)
                good += 1
            except SaysNothing as error:
                idle[error.reason] += 1
            except ValueError as error:
                bad.append(BadRow(where, str(error)))
    if bad and (on_bad_row == "fail" or not shape):
        raise _together(bad, good + len(bad) + idle.total(), text, one_cause=not shape)
    if not good:
        reasons = ", ".join(f"{n:,} {why}" for why, n in [("bad", len(bad)), *idle.items()] if n)
        raise (
            StageRejected(f"{text}: no usable rows ({reasons} left out)")
            if reasons
            else BadRow(f"{files[0][1]}:1", "the file has no rows")
        )
    return shape, idle


def _convert(
    kind: str, shape: str, path: Path, shown: str
) -> Iterator[tuple[str, Record | BadRow | SaysNothing]]:
    for where, raw in readers.read_file(path, shown):
        if isinstance(raw, BadRow):
            yield where, raw
            continue
        try:
            yield where, shapes.convert(kind, shape, raw)
        except SaysNothing as error:
            yield where, error
        except ValueError as error:
            yield where, BadRow(where, str(error))


def _together(bad: list[BadRow], total: int, text: str, *, one_cause: bool) -> BadRow:
    first = bad[0]
    if one_cause:
        first.hint = "give the columns one of these names, or name another kind"
    if len(bad) == 1 or one_cause:
        return first
    lines = [f"  {b.where}: {b.why}" for b in bad[:_SHOWN]]
    more = f"\n  … and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    error = BadRow(
        first.where, first.why, hint="mend these rows, or leave them out with --set on_bad_row=skip"
    )
    error.message = f"{text}: {len(bad):,} of {total:,} rows cannot be used\n" + "\n".join(lines) + more
    error.args = (error.message,)
    return error


def _digest(files: list[File]) -> str:
    if len(files) == 1 and files[0][2] is None:
        return "sha256:" + hash_file(files[0][0])
    return digest_of([[path.name, split, hash_file(path)] for path, _, split in files])


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error
    return found.st_size, found.st_mtime_ns, found.st_ino
