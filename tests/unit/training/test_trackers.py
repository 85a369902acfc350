"""Trackers: they get the metrics, no key, and can fail in any way without a word too many or a step lost."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import MissingExtra
from zephyrctl.events import Recorder, Warning_
from zephyrctl.training import trackers
from zephyrctl.training.trackers import Trackers, need_trackers, open_trackers


class Fake:
    """A tracker that notes what it gets, and fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise RuntimeError("401 for key sk-abcdefgh12345678\nand more")
        self.steps.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def test_tensorboard_has_the_numbers_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MY_API_KEY", "veryprivate1")
    said = Recorder()
    opened = open_trackers(
        ["tensorboard"],
        run="dpo-e3@v2",
        folder=tmp_path,
        config={"lr": 5e-7, "note": "with veryprivate1"},
        emit=said,
    )
    assert opened is not None
    for step in (1, 2, 3):
        opened.log(step, {"loss": 1 / step, "rewards/margins": step / 10})
    opened.close()
    assert said.texts() == [
        f"the run 'dpo-e3@v2' goes to tensorboard; what is kept of it here lies in {tmp_path.name}/ beside the store"
    ]
    assert capfd.readouterr().out == ""
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == "dpo-e3-v2"
    found = EventAccumulator(str(folder)).Reload()
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert len(found.Scalars("rewards/margins")) == 3
    assert all(b"veryprivate1" not in file.read_bytes() for file in folder.iterdir())


def test_nothing_named_nothing_opened(tmp_path: Path) -> None:
    said = Recorder()
    assert open_trackers([], run="r", folder=tmp_path, config={}, emit=said) is None


def test_a_missing_package_is_named_with_the_line_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "mlflow" else object())
    need_trackers(["tensorboard", "wandb"])
    with pytest.raises(MissingExtra, match="'mlflow'") as caught:
        need_trackers(["tensorboard", "mlflow"])
    assert caught.value.hint == "pip install mlflow"
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        need_trackers(["tensorboard"])
    assert caught.value.hint == "pip install 'zephyrctl[trackers]'"


def test_one_that_fails_is_warned_of_once_and_the_other_goes_on() -> None:
    said, good, worse = Recorder(), Fake(), Fake(fails_at=2)

    def never() -> Fake:
        raise SystemExit("no account")

    running = Trackers({"good": lambda: good, "worse": lambda: worse, "never": never}, said)
    for step in range(1, 6):
        running.log(step, {"loss": 1.0})
    running.close()
    assert [step for step, _ in good.steps] == [1, 2, 3, 4, 5]
    assert (good.closed, [step for step, _ in worse.steps]) == (1, [1])
    texts = sorted(said.texts())
    assert len(texts) == 2
    assert texts[0].startswith("never failed and gets no more metrics (no account)")
    assert "401" in texts[1]
    assert "sk-abc" not in texts[1]
    assert "and more" not in texts[1]


def test_the_warning_tells_nobody_where_this_machine_keeps_its_files(tmp_path: Path) -> None:
    said = Recorder()
    (tmp_path / "runs").write_text("", encoding="utf-8")

    def blocked() -> Fake:
        (tmp_path / "runs" / "tensorboard").mkdir()
        return Fake()

    Trackers({"blocked": blocked}, said).close()
    (text,) = said.texts()
    assert "Not a directory" in text
    assert str(tmp_path) not in text


def test_training_never_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_WAITING", 2)
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.05)
    free, said = threading.Event(), Recorder()

    def stuck() -> Fake:
        free.wait(30)
        return Fake()

    before = sys.stdout
    running = Trackers({"stuck": stuck}, said)
    for step in range(50):
        running.log(step, {"loss": 1.0})
    running.close()
    behind, unfinished = said.texts()
    assert "cannot keep up" in behind
    assert "did not finish in time" in unfinished
    free.set()
    running._steps.put(None, timeout=5)
    running._thread.join(5)
    sys.stdout = before


def test_what_a_tracker_prints_does_not_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout

    def chatty() -> Fake:
        sys.stdout.write("* Welcome!\n")
        return Fake()

    running = Trackers({"chatty": chatty}, Recorder())
    sys.stdout.write("the result\n")
    running.close()
    assert sys.stdout is before
    assert capsys.readouterr().out == "the result\n"


class Service(types.ModuleType):
    """Stands for wandb or trackio: `init` notes how it was called and gives a run."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.Settings = dict

    def init(self, **kwargs: Any) -> Any:
        self.asked = kwargs
        return types.SimpleNamespace(
            log=lambda values, step: self.logged.append((step, values)), finish=lambda: None
        )


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("k" * 40, "online")])
def test_wandb_is_offline_without_a_key(
    key: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said = Recorder()
    opened = open_trackers(["wandb"], run="sft-e1@v1", folder=tmp_path, config={"lr": 1e-5}, emit=said)
    assert opened is not None
    opened.log(1, {"loss": 2.0})
    opened.close()
    assert not any(isinstance(event, Warning_) for event in said.events)
    assert (service.asked["mode"], service.asked["name"], service.asked["id"]) == (
        mode,
        "sft-e1@v1",
        "sft-e1-v1",
    )
    assert service.asked["settings"]["save_code"] is False
    assert service.logged == [(1, {"loss": 2.0})]


def test_trackio_stays_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("trackio")
    monkeypatch.setitem(sys.modules, "trackio", service)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    said = Recorder()
    opened = open_trackers(["trackio"], run="sft-e1@v1", folder=tmp_path, config={}, emit=said)
    assert opened is not None
    opened.log(3, {"loss": 2.0})
    opened.close()
    assert not any(isinstance(event, Warning_) for event in said.events)
    assert service.asked["space_id"] is None
    assert service.logged == [(3, {"loss": 2.0})]


def test_mlflow_writes_below_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            calls.append(("place", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return f"experiment of {name}"

        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append((experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))

        def log_param(self, *args: Any) -> None:
            calls.append(args)

        def log_metric(self, *args: Any, step: int) -> None:
            calls.append((*args, step))

        def set_terminated(self, run: str) -> None:
            calls.append(("ended", run))

    service = types.ModuleType("mlflow")
    service.tracking = types.SimpleNamespace(MlflowClient=Client)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", service)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    said = Recorder()
    opened = open_trackers(["mlflow"], run="x@v1", folder=tmp_path / "t", config={"lr": 1.0}, emit=said)
    assert opened is not None
    opened.log(1, {"loss": 2.0})
    opened.close()
    assert not any(isinstance(event, Warning_) for event in said.events)
    assert calls == [
        ("place", f"sqlite:///{tmp_path}/t/mlflow.db"), ("experiment of zephyrctl", "x@v1"), ("r", "lr", "1.0"),
        ("r", "loss", 2.0, 1), ("ended", "r"),
    ]  # fmt: skip
