from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.manifest import FileEntry, Manifest, content_digest, is_content, load, parse, render
from zephyrctl.errors import IntegrityError

HERE = Path("somewhere/manifest.json")
FILES = [
    FileEntry(path="data/train-00000-of-00001.parquet", size=3, sha256="a" * 64, rows=1, split="train"),
    FileEntry(path="README.md", size=3, sha256="b" * 64),
    FileEntry(path="rejects/train-00000-of-00001.parquet", size=3, sha256="c" * 64, rows=1),
    FileEntry(path="timing.jsonl", size=3, sha256="d" * 64),
]


def manifest(**changes: Any) -> Manifest:
    body: dict[str, Any] = {
        "kind": "prefs",
        "kind_version": 1,
        "name": "prefs",
        "world": "real",
        "files": FILES,
        "stage": "binarize",
        "stage_version": 1,
        "config": {"seed": 42},
        "seed": 42,
        "step_key": "0" * 64,
        "content_digest": "sha256:" + "0" * 64,
    }
    return Manifest(**{**body, **changes})


def test_what_is_written_reads_back() -> None:
    made = manifest(note="umlauts äöü, a lone \ud800 surrogate", headline={"score": 1.25})
    found = parse(render(made), HERE)
    assert found.model_dump(exclude={"manifest_digest"}) == made.model_dump(exclude={"manifest_digest"})
    assert found.manifest_digest.startswith("sha256:")


def test_keys_of_a_later_minor_version_are_kept() -> None:
    found = parse(render(manifest(license="apache-2.0")), HERE)
    assert found.model_extra == {"license": "apache-2.0"}
    assert parse(render(found), HERE).model_extra == {"license": "apache-2.0"}


def test_numbers_that_are_not_finite_become_text() -> None:
    found = parse(render(manifest(headline={"a": float("nan"), "b": [float("inf")]})), HERE)
    assert found.headline == {"a": "nan", "b": ["inf"]}


def test_every_flipped_bit_of_a_manifest_is_seen() -> None:
    raw = render(manifest(headline={"loss": 1e-09, "big": 1e22}))
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            parse(bytes(damaged), HERE)


def test_every_cut_of_a_manifest_is_seen() -> None:
    raw = render(manifest())
    for length in range(len(raw)):
        with pytest.raises(IntegrityError):
            parse(raw[:length], HERE)


def test_an_edited_manifest_is_refused() -> None:
    body = json.loads(render(manifest()))
    body["counts"] = {"rows": 7}
    with pytest.raises(IntegrityError, match="edited"):
        parse(json.dumps(body).encode(), HERE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "zephyrctl.manifest/99"}, "newer zephyrctl"),
        ({"schema": "other/1"}, "not a manifest"),
        ({}, "edited"),
    ],
)
def test_a_manifest_of_another_format_says_so(changes: dict[str, Any], words: str) -> None:
    body = json.loads(render(manifest())) | changes | {"counts": {"x": 1}}
    with pytest.raises(IntegrityError, match=words):
        parse(json.dumps(body).encode(), HERE)


@pytest.mark.parametrize("changes", [{"kind_version": 99}, {"kind": "dreams"}])
def test_a_kind_from_the_future_says_so(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="newer zephyrctl"):
        parse(render(manifest(**changes)), HERE)


def test_no_manifest_is_no_version(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    assert load(tmp_path / "absent") is None


def test_the_content_digest_covers_content_and_nothing_else() -> None:
    digest = content_digest("prefs", 1, FILES)
    assert digest == content_digest("prefs", 1, [FILES[0]])
    assert digest == content_digest("prefs", 1, list(reversed(FILES)))
    assert digest != content_digest("sft", 1, FILES)
    assert digest != content_digest("prefs", 2, FILES)
    assert digest != content_digest("prefs", 1, [FILES[0].model_copy(update={"sha256": "e" * 64})])
    assert digest != content_digest("prefs", 1, [FILES[0].model_copy(update={"path": "data/test-0.parquet"})])


CONTENT = {
    "model": ["model.safetensors", "tokenizer.json", "metrics.jsonl", "chat_template.jinja", "config.json"],
    "prefs": ["data/train-00000-of-00001.parquet"],
    "eval": ["data/test-00000-of-00001.parquet"],
}
BESIDE = {
    "model": ["timing.jsonl", "README.md", "log.jsonl", "manifest.json"],
    "prefs": ["rejects/train-00000-of-00001.parquet", "README.md"],
    "eval": ["summary.json", "log.jsonl"],
}


@pytest.mark.parametrize("kind", sorted(CONTENT))
def test_which_files_are_content(kind: str) -> None:
    assert all(is_content(kind, path) for path in CONTENT[kind])
    assert not any(is_content(kind, path) for path in BESIDE[kind])


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_words(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(raw, HERE)


@given(
    st.dictionaries(st.text(), st.floats(allow_nan=False) | st.text() | st.integers() | st.none(), max_size=6)
)
def test_any_headline_survives(values: dict[str, Any]) -> None:
    found = parse(render(manifest(headline=values, note="x")), HERE)
    assert {k: v for k, v in found.headline.items() if not isinstance(v, str)} == {
        k: v for k, v in values.items() if not isinstance(v, str) and abs(v or 0) != float("inf")
    }
