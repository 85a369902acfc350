"""A checkpoint exists once its hash file does, and is used only while every byte fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyrctl.training import checkpoint


def write(scratch: Path, step: int, *, sealed: bool = True) -> Path:
    folder = scratch / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)) + bytes([step]))
    (folder / "optimizer.pt").write_bytes(b"state" * step)
    if sealed:
        checkpoint.seal(folder, step)
    return folder


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert (found.path, found.step, found.passed_over) == (tmp_path / "checkpoint-10", 10, [])


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-x").mkdir()
    assert checkpoint.newest(tmp_path).path is None
    assert checkpoint.newest(tmp_path / "absent").path is None


def test_an_unfinished_one_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 4, sealed=False)
    found = checkpoint.newest(tmp_path)
    assert found.step == 3
    assert found.passed_over == ["checkpoint-4 was never finished"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_every_flipped_bit_of_a_file_is_caught(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 2)
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), 7):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (folder / name).write_bytes(damaged)
            assert checkpoint.fault(folder) == f"has a damaged {name}"
    (folder / name).write_bytes(whole)
    assert checkpoint.fault(folder) is None


def test_a_cut_a_missing_and_an_odd_hash_file(tmp_path: Path) -> None:
    write(tmp_path, 1)
    cut, missing, odd = (write(tmp_path, step) for step in (2, 3, 4))
    (cut / "optimizer.pt").write_bytes(b"")
    (missing / "optimizer.pt").unlink()
    (odd / checkpoint.SEAL).write_text("{}", encoding="utf-8")
    found = checkpoint.newest(tmp_path)
    assert found.step == 1
    assert found.passed_over == [
        "checkpoint-4 has an unreadable checkpoint.json",
        "checkpoint-3 lacks optimizer.pt",
        "checkpoint-2 has a damaged optimizer.pt",
    ]


def test_the_hash_file_names_every_file(tmp_path: Path) -> None:
    body = json.loads((write(tmp_path, 5) / checkpoint.SEAL).read_text(encoding="utf-8"))
    assert body["step"] == 5
    assert sorted(body["files"]) == ["model.safetensors", "optimizer.pt"]
    assert set(body["files"]["optimizer.pt"]) == {"size", "sha256"}


def test_rotation_keeps_the_last_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, sealed=step != 2)
    checkpoint.rotate(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    checkpoint.forget(tmp_path / "checkpoint-4")
    assert checkpoint.newest(tmp_path).step == 3
