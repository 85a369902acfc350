"""A checkpoint exists once its hash file does, and is used only while every byte fits."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.errors import EnvironmentFault
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
    assert (body["step"], body["world"]) == (5, 1)
    assert sorted(body["files"]) == ["model.safetensors", "optimizer.pt"]
    assert set(body["files"]["optimizer.pt"]) == {"size", "sha256"}


def test_rotation_keeps_the_last_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, sealed=step != 2)
    checkpoint.rotate(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    checkpoint.forget(tmp_path / "checkpoint-4")
    assert checkpoint.newest(tmp_path).step == 3


def sharded(scratch: Path, step: int, world: int) -> Path:
    """What `world` processes leave before the hash file: a state each, in a folder of its own."""
    folder = scratch / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    for rank in range(world):
        (folder / f"rng_state_{rank}.pth").write_bytes(b"dice" + bytes([rank]))
        (folder / f"global_step{step}" / f"zero_pp_rank_{rank}.pt").write_bytes(bytes(50 + rank))
    (folder / "latest").write_text(f"global_step{step}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("world", [1, 2, 3, 16])
def test_hashes_of_many_are_the_hashes_of_one(tmp_path: Path, world: int) -> None:
    one, many = sharded(tmp_path / "one", 7, 3), sharded(tmp_path / "many", 7, 3)
    checkpoint.seal(one, 7)
    for rank in reversed(range(world)):
        checkpoint.hash_share(many, rank, world)
    assert checkpoint.fault(many) == "was never finished"
    checkpoint.seal(many, 7, world)
    assert checkpoint.read_seal(many)["files"] == checkpoint.read_seal(one)["files"]
    assert checkpoint.newest(tmp_path / "many") == checkpoint.Found(many, 7, [], world)
    assert [p.name for p in many.glob("checkpoint.json*")] == ["checkpoint.json"]


def test_every_file_is_hashed_once_and_shares_are_about_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tmp_path, 4, 4)
    for place, size in enumerate((900, 500, 400, 300)):
        (folder / f"model-{place}.safetensors").write_bytes(bytes(size))
    hashed: list[tuple[int, str, int]] = []
    rank = -1
    sha256 = checkpoint._sha256

    def noted(path: Path) -> str:
        hashed.append((rank, path.name, path.stat().st_size))
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", noted)
    for rank in range(2):
        checkpoint.hash_share(folder, rank, 2)
    rank = 9
    checkpoint.seal(folder, 4, 2)
    assert sorted(name for _, name, _ in hashed) == sorted(p.name for p in folder.rglob("*") if p.is_file()
                                                           and p.name != checkpoint.SEAL)  # fmt: skip
    loads = [sum(size for who, _, size in hashed if who == which) for which in (0, 1, 9)]
    assert loads[2] == 0
    assert max(loads) < 0.55 * sum(loads)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_leader_hashes_what_a_share_does_not_say(tmp_path: Path, lost: int) -> None:
    folder = sharded(tmp_path, 4, 2)
    for rank in range(2):
        checkpoint.hash_share(folder, rank, 2)
    (folder / f"checkpoint.json.rank-{lost}").write_text("{", encoding="utf-8")
    (folder / "late.json").write_text("{}", encoding="utf-8")
    (folder / "latest").write_text("global_step4 and more", encoding="utf-8")
    checkpoint.seal(folder, 4, 2)
    assert checkpoint.fault(folder) is None
    assert "late.json" in checkpoint.read_seal(folder)["files"]


@given(sizes=st.lists(st.integers(0, 40), max_size=12), world=st.integers(1, 5))
def test_shares_cover_all_files_without_overlap(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], world: int
) -> None:
    folder = tmp_path_factory.mktemp("shares")
    for place, size in enumerate(sizes):
        (folder / f"f{place}").write_bytes(bytes(size))
    shares = [checkpoint._share(folder, rank, world) for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(
        f"f{place}" for place in range(len(sizes))
    )
    shutil.rmtree(folder)


Harm = Callable[[Path], object]
HARMS: dict[str, Harm] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()[2:]),
    "a folder": lambda path: path.rename(path.with_name("moved")).with_name(path.name).mkdir(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_any_file_makes_the_previous_one_the_newest(tmp_path: Path, harm: str) -> None:
    previous = sharded(tmp_path, 3, 2)
    checkpoint.seal(previous, 3, 2)
    pristine = tmp_path / "pristine"
    shutil.copytree(sharded(tmp_path / "made", 4, 2), pristine)
    checkpoint.seal(pristine, 4, 2)
    names = [p.relative_to(pristine) for p in sorted(pristine.rglob("*")) if p.is_file()]
    assert len(names) == 6
    for name in names:
        folder = tmp_path / "checkpoint-4"
        shutil.copytree(pristine, folder)
        assert checkpoint.newest(tmp_path).path == folder
        HARMS[harm](folder / name)
        found = checkpoint.newest(tmp_path)
        assert (found.path, found.step, found.world) == (previous, 3, 2), name
        assert len(found.passed_over) == 1
        assert found.passed_over[0].startswith("checkpoint-4 ")
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "1", '"x"', "{", '{"step": 4}', '{"files": {}}', '{"step": "x", "files": {}}',
        '{"step": 4, "files": []}', '{"step": 4, "files": {"a": {}}}', '{"step": 4, "files": {"a": 3}}',
        '{"step": 4, "files": {"a": {"size": null, "sha256": ""}}}',
        '{"step": 4, "files": {"../other": {"size": 0, "sha256": ""}}}',
        '{"step": 4, "files": {"/etc/hostname": {"size": 0, "sha256": ""}}}',
    ],
)  # fmt: skip
def test_a_hash_file_of_any_text_is_refused_in_words(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, 4)
    (folder / checkpoint.SEAL).write_text(text, encoding="utf-8")
    found = checkpoint.newest(tmp_path)
    assert (found.path, found.passed_over) == (None, ["checkpoint-4 has an unreadable checkpoint.json"])


def test_a_folder_under_another_name_and_a_stray_file_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 4)
    (folder / "rng_state_1.pth").write_bytes(b"of another run")
    assert checkpoint.fault(folder) == "holds rng_state_1.pth, which its checkpoint.json does not name"
    (folder / "rng_state_1.pth").unlink()
    folder.rename(tmp_path / "checkpoint-9")
    assert checkpoint.fault(tmp_path / "checkpoint-9") == "has the checkpoint.json of step 4"


def test_damaged_ones_beyond_the_step_do_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path, step, sealed=step != 40)
    (tmp_path / "checkpoint-30" / "optimizer.pt").write_bytes(b"")
    assert checkpoint.newest(tmp_path).step == 20
    write(tmp_path, 22)
    checkpoint.rotate(tmp_path, saved=22)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-22"]


def test_a_full_disk_is_an_environment_fault_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sharded(tmp_path, 4, 2)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentFault, match="no space left"):
        checkpoint.hash_share(folder, 0, 2)
    with pytest.raises(EnvironmentFault, match="no space left"):
        checkpoint.seal(folder, 4, 2)
    assert checkpoint.fault(folder) == "was never finished"


class Died(BaseException):
    """Stands for a process that is killed: nothing in it runs any more."""


def test_a_process_killed_at_any_moment_of_saving_leaves_a_usable_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before each call that changes the disk, in turn, while step 4 is written, sealed and the oldest removed."""
    pristine = tmp_path / "pristine"
    for step in (2, 3):
        checkpoint.seal(sharded(pristine, step, 2), step, 2)
    left = 10**9

    def mortal(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Died
            return real(*args, **kwargs)

        return call

    def save(scratch: Path) -> None:
        folder = sharded(scratch, 4, 2)
        for rank in range(2):
            checkpoint.hash_share(folder, rank, 2)
        checkpoint.seal(folder, 4, 2)
        checkpoint.rotate(scratch, saved=4)

    changing = (
        (os, "fsync"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree"), (Path, "write_bytes"),
    )  # fmt: skip
    for owner, name in changing:
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    found_steps = []
    for moment in range(1000):
        left = 10**9
        scratch = tmp_path / "tries" / str(moment)
        shutil.copytree(pristine, scratch)
        left = moment
        try:
            save(scratch)
            break
        except Died:
            left = 10**9
        found = checkpoint.newest(scratch)
        found_steps.append(found.step)
        if found.step == 3:
            assert found.passed_over in ([], ["checkpoint-4 was never finished"])
        checkpoint.forget(scratch / "checkpoint-4")
        save(scratch)
        assert checkpoint.newest(scratch).step == 4
        assert checkpoint.fault(scratch / "checkpoint-3") is None
    assert found_steps == sorted(found_steps)
    assert set(found_steps) == {3, 4}
    assert len(found_steps) > 20
