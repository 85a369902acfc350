"""Every call that changes the disk is made to fail, and to be the last one of its process."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.store import Store
from zephyrctl.errors import EnvironmentFault

KINDS = ["prefs", "model"]
NAME = {"prefs": "prefs", "model": "dpo-e1"}
SIDE = {"prefs": "prefs-best", "model": "dpo-e1.epoch0"}


def count(run: Any, faulty: Any, mend: Any, root: Path, kind: str) -> list[str]:
    """The calls of one undisturbed step."""
    calls = faulty()
    run(Store.open(root), kind)
    mend()
    seen: list[str] = calls.seen
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_call_the_version_is_absent_or_whole(
    tmp_path: Path, kind: str, run: Any, faulty: Any, mend: Any, whole: Any
) -> None:
    seen = count(run, faulty, mend, tmp_path / "count" / "artifacts", kind)
    assert {"open_new", "write", "fsync", "mkdir", "rename"} <= set(seen)
    after = {"absent": 0, "whole": 0}
    for at in range(len(seen)):
        root = tmp_path / f"{at}" / "artifacts"
        calls = faulty(at, tear=at % 2 == 0)
        with contextlib.suppress(calls.Killed):
            run(Store.open(root), kind)
        assert calls.dead
        mend()
        main = [a for a in whole(root) if a.ref.name == NAME[kind]]
        after["whole" if main else "absent"] += 1
        result = run(Store.open(root), kind)
        assert result.ref == f"{NAME[kind]}@v1", (at, calls.seen[-1])
        assert result.already is bool(main)
        side = SIDE[kind]
        assert sorted(str(a.ref) for a in whole(root)) == sorted([f"{NAME[kind]}@v1", f"{side}@v1"])
        assert result.sides == {side: f"{side}@v1"}
        for model in (NAME[kind], side) if kind == "model" else ():
            assert (root.parent / "ckpt" / model / "config.json").read_text(encoding="utf-8") == "{}"
    assert after["absent"] > after["whole"] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "every"),
    [(errno.ENOSPC, 1), (errno.EIO, 1), (errno.EDQUOT, 7), (errno.EFBIG, 7), (errno.EROFS, 7)],
)
def test_a_disk_that_refuses_any_call_commits_nothing_and_says_so(
    tmp_path: Path, kind: str, code: int, every: int, run: Any, faulty: Any, mend: Any, whole: Any
) -> None:
    seen = count(run, faulty, mend, tmp_path / "count" / "artifacts", kind)
    refused = 0
    for at in range(0, len(seen), every):
        root = tmp_path / f"{at}" / "artifacts"
        faulty(at, code=code, tear=True)
        store = Store.open(root)
        try:
            result = run(store, kind)
            told = None
        except EnvironmentFault as error:
            told, result = error, None
            refused += 1
        mend()
        main = [a for a in whole(root) if a.ref.name == NAME[kind]]
        if told is not None:
            assert told.exit_code == 3
            assert str(root.parent) in told.message or "was committed" in told.message
            # only what comes after the rename may fail with the version in place, and then the words differ
            if main and "was committed" not in told.message:
                assert "ckpt" in told.message
        else:
            assert result is not None
            assert main
        assert run(Store.open(root), kind).ref == f"{NAME[kind]}@v1"
    assert refused > len(seen) // every // 2


def test_a_disk_that_stays_full_leaves_a_store_that_reads_and_resumes(
    tmp_path: Path, run: Any, faulty: Any, mend: Any, whole: Any
) -> None:
    root = tmp_path / "artifacts"
    run(Store.open(root), "prefs")
    at, reached = 0, True
    while reached:
        calls = faulty(at, code=errno.ENOSPC, sticky=True)
        told = ""
        try:
            run(Store.open(root), "prefs", again=True)
        except EnvironmentFault as error:
            told = error.message
        reached = len(calls.seen) > at
        assert not told or "no space" in told or "was committed" in told
        assert Store.open(root).resolve("prefs").check()
        mend()
        at += 3
    assert at > 45
    whole(root)
    assert run(Store.open(root), "prefs").already


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_failed_sync_is_never_retried_as_if_it_had_worked(
    tmp_path: Path, faulty: Any, failing: str
) -> None:
    from zephyrctl.artifacts.durable import NewFile

    calls = faulty()
    file = NewFile(tmp_path / "x")
    file.write(b"abc")
    calls.at, calls.code = (2 if failing == "fsync" else 1), errno.EIO
    with pytest.raises(OSError, match="error"):
        file.close()
    with pytest.raises(OSError, match="error"):
        file.close()


def test_a_commit_that_failed_is_not_tried_again_in_the_same_run(
    tmp_path: Path, faulty: Any, mend: Any, run: Any
) -> None:
    from zephyrctl.artifacts.step import Step, Work
    from zephyrctl.config import StageConfig

    class Config(StageConfig):
        stage = "trial"

    step = Step(
        Work(Store.open(tmp_path / "artifacts")), Config(), name="tiny", kind="model", inputs=[], world="real"
    )
    with step.open() as staging:
        staging.write_text("config.json", "{}")
        faulty(0, code=errno.EIO)
        with pytest.raises(EnvironmentFault):
            staging.commit()
        mend()
        with pytest.raises(EnvironmentFault, match="earlier commit"):
            staging.commit()


def test_the_order_of_a_commit_is_files_folders_rename_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    from zephyrctl.artifacts import durable

    log: list[tuple[str, str]] = []

    class Told(durable.Calls):
        def fsync(self, handle: int) -> None:
            log.append(("fsync", str(Path(f"/proc/self/fd/{handle}").readlink())))
            super().fsync(handle)

        def rename(self, source: str, target: str) -> None:
            log.append(("rename", target))
            super().rename(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("/proc is needed to name the files behind handles")
    monkeypatch.setattr(durable, "calls", Told())
    root = tmp_path / "artifacts"
    artifact = run(Store.open(root), "prefs").artifact
    staging = next(
        path for call, path in log if call == "fsync" and path.endswith("/staging/manifest.json")
    ).removesuffix("/manifest.json")
    final = log.index(("rename", str(artifact.path)))
    synced = [path for call, path in log[:final] if call == "fsync"]
    for entry in artifact.manifest.files:
        assert synced.index(f"{staging}/{entry.path}") < synced.index(f"{staging}/manifest.json")
    folders = [f"{staging}/data", f"{staging}/rejects", staging]
    positions = [len(synced) - 1 - synced[::-1].index(folder) for folder in folders]
    assert max(positions[:2]) < positions[2]
    assert synced.index(f"{staging}/manifest.json") < min(positions)
    assert ("fsync", str(artifact.path.parent)) in log[final:]


def test_an_empty_or_filled_folder_in_the_way_is_passed_over(
    tmp_path: Path, run: Any, whole: Callable[..., Any]
) -> None:
    store = Store.open(tmp_path / "artifacts")
    (store.root / "prefs" / "v1").mkdir(parents=True)
    (store.root / "prefs" / "v2").mkdir()
    (store.root / "prefs" / "v2" / "x").write_text("x", encoding="utf-8")
    (store.root / "prefs" / "v3").write_text("x", encoding="utf-8")
    assert run(store, "prefs").ref == "prefs@v4"
    assert list((store.root / "prefs" / "v1").iterdir()) == []
    assert (store.root / "prefs" / "v2" / "x").is_file()
