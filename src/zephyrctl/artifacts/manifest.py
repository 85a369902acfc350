"""What a version says about itself.

The manifest is written last: a version without a valid one does not exist.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zephyrctl.config import canonical, digest_of
from zephyrctl.errors import IntegrityError
from zephyrctl.records import ROW_TYPES, SCHEMAS, explain

FILE_NAME = "manifest.json"
MAJOR = 1
SCHEMA = f"zephyrctl.manifest/{MAJOR}"
_SCHEMA = re.compile(r"zephyrctl\.manifest/(\d{1,6})")
_MAX_BYTES = 64 << 20

World = Literal["sandbox", "real"]


class InputRef(BaseModel):
    """Something a step read: `ref` as people name it, `digest` as the step key knows it."""

    model_config = ConfigDict(frozen=True)

    role: str
    ref: str
    digest: str
    kind: str


class FileEntry(BaseModel):
    """One file of a version: path in the version's folder, size in bytes, sha256 as 64 hex digits."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str
    rows: int | None = None
    split: str | None = None


class Manifest(BaseModel):
    """All that is kept about a version beside its files.

    Keys this version does not know are kept as they are.
    """

    model_config = ConfigDict(
        extra="allow", populate_by_name=True, use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    schema_id: str = Field(SCHEMA, alias="schema")
    kind: str
    kind_version: int
    name: str
    world: World
    files: list[FileEntry]
    counts: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputRef] = Field(default_factory=list)
    stage: str
    stage_version: int
    config: dict[str, Any]
    edition: str | None = None
    seed: int
    step_key: str
    side: bool = False
    sides: dict[str, str] = Field(default_factory=dict)
    """Side outputs of the same step: name to ref."""
    teachers: list[dict[str, Any]] = Field(default_factory=list)
    templates: dict[str, str] = Field(default_factory=dict)
    headline: dict[str, Any] = Field(default_factory=dict)
    """The few scores that a listing shows."""
    content_digest: str
    code: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    """When, where and with which packages: information only, in no digest of the content."""
    note: str | None = None
    manifest_digest: str = ""
    """sha256 over all the above as canonical JSON."""


# Beside the content: cards, logs, speeds and dropped rows never decide whether two results are the same.
_BESIDE = {FILE_NAME, "README.md", "timing.jsonl", "log.jsonl"}


def is_content(kind: str, path: str) -> bool:
    """Whether a file belongs to what the artifact *is*:

    `data/…` for rows; weights, tokenizer, template, config, metrics for models.
    """
    if path in _BESIDE or path.startswith("rejects/"):
        return False
    return path.startswith("data/") if kind in ROW_TYPES else True


def is_checked(path: str) -> bool:
    """Whether a reader may open this file, so that its bytes are checked before any reader does."""
    return path not in _BESIDE


def content_digest(kind: str, schema: int, files: Iterable[FileEntry]) -> str:
    """The identity of the content: kind, schema number, path and sha256 of every content file, and nothing
    else.
    """
    body = sorted([f.path, f.sha256] for f in files if is_content(kind, f.path))
    return digest_of({"kind": kind, "schema": schema, "files": body})


def render(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, with the manifest's digest filled in.

    Numbers that are not finite become text.
    """
    body = _finite(manifest.model_dump(mode="json", by_alias=True, exclude={"manifest_digest"}))
    body["manifest_digest"] = digest_of(body)
    return _text(body)


def load(folder: Path) -> Manifest | None:
    """The manifest of a version's folder, or None where there is none (such a version does not exist).

    Raises IntegrityError for a manifest that was cut or edited, or that a newer zephyrctl wrote.
    """
    path = folder / FILE_NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise IntegrityError(f"{path}: larger than any manifest is")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror})") from error
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Manifest:
    """The manifest in `raw`; `path` is for messages. Raises IntegrityError as `load` does."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise IntegrityError(
            f"{path}: not a whole JSON document; the manifest was cut or overwritten"
        ) from None
    if not isinstance(body, dict):
        raise IntegrityError(f"{path}: not a manifest")
    match = _SCHEMA.fullmatch(str(body.get("schema")))
    if match is None:
        raise IntegrityError(f"{path}: not a manifest of zephyrctl (schema {body.get('schema')!r:.60})")
    if int(match.group(1)) > MAJOR:
        raise IntegrityError(
            f"{path}: made by a newer zephyrctl (manifest format {match.group(1)}; this one reads {MAJOR})",
            hint="pip install --upgrade zephyrctl",
        )
    stated = body.pop("manifest_digest", None)
    if stated != digest_of(body) or raw != _text({**body, "manifest_digest": stated}):
        raise IntegrityError(f"{path}: the manifest was edited or damaged; its own digest does not fit")
    try:
        manifest = Manifest.model_validate({**body, "manifest_digest": stated})
    except ValidationError as error:
        raise IntegrityError(f"{path}: not a valid manifest: {explain(error)}") from None
    known = SCHEMAS.get(manifest.kind)
    if known is None or manifest.kind_version > known:
        raise IntegrityError(
            f"{path}: made by a newer zephyrctl (kind '{manifest.kind}' version {manifest.kind_version}, "
            f"this one reads {'up to ' + str(known) if known else 'no such kind'})",
            hint="pip install --upgrade zephyrctl",
        )
    return manifest


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _text(body: dict[str, Any]) -> bytes:
    # sorted keys and one layout: equal manifests are equal bytes, so any changed byte is seen
    canonical(body)
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False)
    return (text + "\n").encode("utf-8", "surrogatepass")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value
