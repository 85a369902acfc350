from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, digests_by_role
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.writer import Staging
from zephyrctl.errors import IntegrityError, Locked, StageRejected, TryAgain, UsageError
from zephyrctl.events import Note, Progress, Recorder, Warning_
from zephyrctl.records import Record

if TYPE_CHECKING:
    from conftest import Make

MakeStep = Callable[..., Step]
RowsOf = Callable[[str, int], list[Record]]


class Crash(Exception):
    """Ends a run in the middle."""


def crash_after(step: Step, work: Callable[[Staging], object]) -> None:
    with step.open() as staging:
        work(staging)
        raise Crash


def make_side(rows: list[Record]) -> Callable[[Staging], None]:
    def work(staging: Staging) -> None:
        with staging.side("prefs-best", "sft") as side:
            assert side.existing is None
            side.write_rows("train", rows)

    return work


@pytest.fixture
def pairs(rows_of: RowsOf) -> list[Record]:
    return rows_of("prefs", 5)


@pytest.fixture
def dialogues(rows_of: RowsOf) -> list[Record]:
    return rows_of("sft", 3)


def test_a_finished_step_is_found_and_nothing_is_done_again(make_step: MakeStep, make: Make) -> None:
    assert make_step().done() is None
    artifact = make()
    done = make_step().done()
    assert done is not None
    assert (done.ref, done.already) == (str(artifact.ref), True)
    assert make_step(knob=2).done() is None
    assert make_step("others").done() is None
    assert make_step(again=True).done() is None


def test_runtime_settings_are_no_new_work(make_step: MakeStep, make: Make) -> None:
    make()
    assert make_step(note="a word", out="prefs").done() is not None


def test_inputs_enter_the_key_by_role_and_digest_not_by_name(make_step: MakeStep) -> None:
    def item(role: str, ref: str, digest: str) -> InputRef:
        return InputRef(role=role, ref=ref, digest=digest, kind="sft")

    one = make_step(inputs=[item("data", "a@v1", "sha256:1")]).key
    assert one == make_step(inputs=[item("data", "b@v7", "sha256:1")]).key
    assert one != make_step(inputs=[item("data", "a@v1", "sha256:2")]).key
    assert one != make_step(inputs=[item("init", "a@v1", "sha256:1")]).key
    two = [item("data", "a", "sha256:1"), item("init", "m", "sha256:3"), item("data", "b", "sha256:2")]
    assert digests_by_role(two) == {"data.0": "sha256:1", "init": "sha256:3", "data.1": "sha256:2"}


def test_again_makes_a_new_version_with_the_same_content(make: Make) -> None:
    one, two = make(), make(again=True)
    assert (one.ref.version, two.ref.version) == (1, 2)
    assert one.digest == two.digest
    assert one.manifest.step_key == two.manifest.step_key


def test_a_version_is_complete_read_only_and_leaves_no_traces(store: Store, make: Make) -> None:
    artifact = make(rejects=[{"where": "x:1", "reason": "tie", "detail": None, "row": {"a": 1}}])
    found = sorted(p.relative_to(artifact.path).as_posix() for p in artifact.path.rglob("*") if p.is_file())
    assert found == [
        "README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet", "manifest.json",
        "rejects/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert all(stat.S_IMODE((artifact.path / name).stat().st_mode) == 0o444 for name in found)
    assert artifact.manifest.counts == {"rows": 6, "splits": {"train": 4, "test": 2}, "rejects": {"tie": 1}}
    assert list(artifact.rejects()) == [{"where": "x:1", "reason": "tie", "detail": "", "row": '{"a": 1}'}]
    assert list(store.work.iterdir()) == []
    assert artifact.problems() == []


def test_a_step_without_rows_is_refused_with_the_reasons(store: Store, make_step: MakeStep) -> None:
    with make_step().open() as staging:
        staging.write_rejects([{"reason": "tie"}, {"reason": "unscored"}, {"reason": "tie"}])
        with pytest.raises(StageRejected, match=r"no rows left to keep \(2 tie, 1 unscored\)") as caught:
            staging.commit()
    assert caught.value.exit_code == 9
    assert store.names() == []


def test_rows_of_another_kind_and_unknown_splits_are_refused(
    make_step: MakeStep, pairs: list[Record]
) -> None:
    with make_step("sft-data", "sft").open() as staging:
        with pytest.raises(UsageError, match="PreferenceRow cannot be a row of kind 'sft'"):
            staging.write_rows("train", pairs)
        with pytest.raises(UsageError, match="no split"):
            staging.write_rows("validation", [])
        for path in ("/etc/passwd", "../x", "data/../../x", ""):
            with pytest.raises(UsageError, match="not a path inside"):
                staging.write_text(path, "x")


def test_pickles_and_links_never_become_part_of_an_artifact(make_step: MakeStep) -> None:
    with make_step("tiny", "model").open() as staging:
        staging.write_text("training_args.bin", "x")
        with pytest.raises(IntegrityError, match="pickle"):
            staging.commit()
    with make_step("tiny", "model").open() as staging:
        (staging.path / "config.json").symlink_to("/etc/hostname")
        with pytest.raises(IntegrityError, match="plain files"):
            staging.commit()


def test_what_a_failed_run_left_is_cleared_and_its_scratch_kept(
    make_step: MakeStep, pairs: list[Record]
) -> None:
    def work(staging: Staging) -> None:
        staging.write_rows("train", pairs)
        (staging.scratch / "checkpoint-1").mkdir()

    with pytest.raises(Crash):
        crash_after(make_step(), work)
    with make_step().open() as staging:
        assert list(staging.path.iterdir()) == []
        assert [p.name for p in staging.scratch.iterdir()] == ["checkpoint-1"]
        staging.write_rows("train", pairs[:2])
        assert staging.commit().count() == 2
    with make_step(again=True).open() as staging:
        assert list(staging.scratch.iterdir()) == []


def test_side_outputs_are_versions_of_their_own(
    store: Store, make_step: MakeStep, pairs: list[Record], dialogues: list[Record]
) -> None:
    with make_step().open() as staging:
        with staging.side("prefs-best", "sft") as side:
            side.write_rows("train", dialogues)
        staging.write_rows("train", pairs)
        artifact = staging.commit()
    assert artifact.manifest.sides == {"prefs-best": "prefs-best@v1"}
    best = store.resolve("prefs-best")
    assert best.manifest.side
    assert best.manifest.step_key == artifact.manifest.step_key
    assert store.newest("prefs-best") is None
    assert store.newest("prefs-best", sides=True) is not None
    done = make_step().done()
    assert done is not None
    assert done.sides == {"prefs-best": "prefs-best@v1"}


@pytest.mark.parametrize("again", [False, True])
def test_a_side_output_is_found_again_after_a_crash_and_never_doubled(
    store: Store, make_step: MakeStep, pairs: list[Record], dialogues: list[Record], again: bool
) -> None:
    if again:
        with make_step().open() as staging:
            with staging.side("prefs-best", "sft") as side:
                side.write_rows("train", dialogues)
            staging.write_rows("train", pairs)
            staging.commit()
    before = len(store.numbers("prefs-best"))
    with pytest.raises(Crash):
        crash_after(make_step(again=again), make_side(dialogues))
    with make_step(again=again).open() as staging:
        with staging.side("prefs-best", "sft") as side:
            assert side.existing is not None
            side.write_rows("train", dialogues)
        staging.write_rows("train", pairs)
        artifact = staging.commit()
    assert len(store.numbers("prefs-best")) == before + 1
    assert artifact.manifest.sides == {"prefs-best": f"prefs-best@v{before + 1}"}


def test_sides_of_an_earlier_run_of_the_attempt_are_named_by_the_main_output(make_step: MakeStep) -> None:
    def work(staging: Staging) -> None:
        with staging.side("dpo-e3.epoch1", "model") as side:
            side.write_text("config.json", "{}")

    with pytest.raises(Crash):
        crash_after(make_step("dpo-e3", "model"), work)
    with make_step("dpo-e3", "model").open() as staging:
        staging.write_text("config.json", "{}")
        assert staging.commit().manifest.sides == {"dpo-e3.epoch1": "dpo-e3.epoch1@v1"}


HOLDER = """
import sys
from pathlib import Path
from zephyrctl.artifacts.lock import hold_or_refuse

with hold_or_refuse(Path(sys.argv[1]), "this"):
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_another_process_on_the_same_step_is_refused_by_pid_and_host(make_step: MakeStep) -> None:
    step = make_step()
    step.work.store.prepare()
    step.folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(step.folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {other.pid} on") as caught, step.open():
            pass
        assert caught.value.exit_code == 75
        other.kill()
        other.wait()
        with step.open():
            pass


def test_a_forged_owner_file_holds_no_lock(make_step: MakeStep, make: Make) -> None:
    step = make_step()
    step.folder.mkdir(parents=True)
    (step.folder / "owner.json").write_text(
        '{"pid": 1, "host": "elsewhere", "started": "now"}', encoding="utf-8"
    )
    (step.folder / "lock").write_text("1", encoding="utf-8")
    assert str(make().ref) == "prefs@v1"


def test_a_step_finished_by_another_meanwhile_is_not_done_twice(make_step: MakeStep, make: Make) -> None:
    step = make_step()
    assert step.done() is None
    make()
    with pytest.raises(TryAgain, match="just finished"), step.open():
        pass


def test_a_damaged_result_of_a_finished_step_is_told(make_step: MakeStep, make: Make) -> None:
    data = make().path / "data" / "train-00000-of-00001.parquet"
    data.chmod(0o644)
    data.write_bytes(b"x")
    with pytest.raises(IntegrityError) as caught:
        make_step().done()
    assert "--again" in str(caught.value.hint)
    assert str(make(again=True).ref) == "prefs@v2"


def test_notes_and_warnings_are_kept_with_the_step_without_keys(
    make_step: MakeStep, pairs: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIAL_API_KEY", "abcdefgh-very-secret")
    heard = Recorder()
    step = make_step(emit=heard)
    work = step.work
    with step.open() as staging:
        work.emit(Note("the key is abcdefgh-very-secret"))
        work.emit(Warning_("another is sk-1234567890abcdef, Bearer abcdefghijkl"))
        work.emit(Progress("rows", 1, 2))
        staging.write_rows("train", pairs)
        artifact = staging.commit()
    work.emit(Note("afterwards"))
    assert len(heard.events) == 4
    text = (artifact.path / "log.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    assert [e["event"] for e in entries] == ["note", "warning"]
    assert "secret" not in text
    assert "sk-1234567890abcdef" not in text
    assert "abcdefghijkl" not in text


def test_staging_on_another_disk_is_refused(make_step: MakeStep, monkeypatch: pytest.MonkeyPatch) -> None:
    from zephyrctl.artifacts import step as module
    from zephyrctl.errors import EnvironmentFault

    step = make_step()
    plain = Path.stat

    def moved(path: Path, **how: bool) -> os.stat_result:
        found = plain(path, **how)
        if path == step.folder:
            fields = list(found)
            fields[2] += 1
            return os.stat_result(fields)
        return found

    monkeypatch.setattr(module.Path, "stat", moved)
    with pytest.raises(EnvironmentFault, match="another disk"), step.open():
        pass
