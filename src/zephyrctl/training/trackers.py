"""Metrics to trackers while they are made: TensorBoard, Trackio, Weights & Biases, MLflow.

A tracker is a convenience. Training never waits for one and never fails by one: they are fed from a thread of their
own, the first failure of each is said once, and that tracker is left alone from then on. `metrics.jsonl` has it all.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TextIO

from zephyrctl.errors import MissingExtra
from zephyrctl.events import Emit, Note, Warning_
from zephyrctl.redact import redact

PROJECT = "zephyrctl"
_PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
_WAITING = 10_000
"""Steps that a slow tracker may be behind; beyond it, newer ones are left out."""
_LAST_SECONDS = 15.0
"""How long the end of a run waits for the trackers."""


class Tracker(Protocol):
    """One open run in one tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        ...

    def close(self) -> None:
        """Ends the run."""
        ...


def need_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtra, naming the pip line, where a tracker's package is not installed. Loads nothing."""
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            missing = MissingExtra(_PACKAGES[name], "trackers")
            if name != "tensorboard":
                missing.hint = f"pip install {_PACKAGES[name]}"
            raise missing


class Trackers:
    """Feeds some trackers from a thread. `open_trackers` makes it."""

    def __init__(self, openers: Mapping[str, Callable[[], Tracker]], emit: Emit) -> None:
        self._emit = emit
        self._failed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._steps: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_WAITING)
        self._behind = False
        self._thread = threading.Thread(
            target=self._feed, args=(dict(openers),), name="trackers", daemon=True
        )
        self._stdout = _Aside(sys.stdout, self._thread)
        sys.stdout = self._stdout
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hands on the numbers of a step and returns at once."""
        self._tell()
        try:
            self._steps.put_nowait((step, dict(values)))
        except queue.Full:
            if not self._behind:
                self._behind = True
                self._emit(Warning_("the trackers cannot keep up: some steps will be missing there"))

    def close(self) -> None:
        """Lets the trackers finish, for a few seconds at most."""
        with contextlib.suppress(queue.Full):
            self._steps.put(None, timeout=_LAST_SECONDS)
            self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._emit(Warning_("a tracker did not finish in time; metrics.jsonl has all numbers"))
        elif sys.stdout is self._stdout:
            sys.stdout = self._stdout.own
        self._tell()

    def _tell(self) -> None:
        while not self._failed.empty():
            self._emit(Warning_(self._failed.get()))

    def _feed(self, openers: dict[str, Callable[[], Tracker]]) -> None:
        open_runs: dict[str, Tracker] = {}
        for name, opener in openers.items():
            with self._guard(name, open_runs):
                open_runs[name] = opener()
        while (item := self._steps.get()) is not None:
            for name, run in list(open_runs.items()):
                with self._guard(name, open_runs):
                    run.log(*item)
        for name, run in list(open_runs.items()):
            with self._guard(name, open_runs):
                run.close()

    @contextlib.contextmanager
    def _guard(self, name: str, open_runs: dict[str, Tracker]) -> Iterator[None]:
        """Whatever a tracker raises (they have errors of all kinds) ends it, and nothing else."""
        try:
            yield
        except BaseException as error:
            open_runs.pop(name, None)
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            lines = redact(words).strip().splitlines() or [type(error).__name__]
            self._failed.put(
                f"{name} failed and gets no more metrics ({lines[0][:200]}); training goes on, metrics.jsonl has all"
            )


class _Aside:
    """stdout for all but one thread, whose words go nowhere: it is for the result alone, and some trackers greet."""

    def __init__(self, own: TextIO, thread: threading.Thread) -> None:
        self.own, self._thread = own, thread

    def write(self, text: str) -> int:
        """As a stream's."""
        return len(text) if threading.current_thread() is self._thread else self.own.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def open_trackers(
    names: Sequence[str], *, run: str, folder: Path, config: Mapping[str, Any], emit: Emit, step: int = 0
) -> Trackers | None:
    """The trackers `names` with a run called `run`, None where none is named.

    What stays on this machine is written under `folder`. `config` is shown beside the run, without keys. A run that
    goes on from `step` continues the earlier one where the tracker can. No network is needed: W&B is offline unless it
    has a key or WANDB_MODE, Trackio and MLflow write to this machine unless their own variables name a server.
    """
    if not names:
        return None
    need_trackers(names)
    run, shown = redact(run), {key: _plain(value) for key, value in config.items()}
    opened = {name: _opener(_OPENERS[name], run, folder, shown, step) for name in dict.fromkeys(names)}
    kept = f"what is kept of it here lies in {folder.name}/ beside the store"
    emit(Note(f"the run '{run}' goes to {', '.join(opened)}; {kept}"))
    return Trackers(opened, emit)


_Open = Callable[[str, Path, dict[str, Any], int], Tracker]


def _opener(make: _Open, run: str, folder: Path, config: dict[str, Any], step: int) -> Callable[[], Tracker]:
    return lambda: make(run, folder, config, step)


def _plain(value: Any) -> Any:
    """A setting as a number or as text without keys."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


class _Calls:
    """A tracker made of two functions."""

    def __init__(self, log: Callable[[int, dict[str, float]], Any], close: Callable[[], Any]) -> None:
        self._log, self._close = log, close

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def close(self) -> None:
        self._close()


def _tensorboard(run: str, folder: Path, config: dict[str, Any], step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    # Steps that a resumed run makes again replace those of the run that was stopped.
    writer = SummaryWriter(str(folder / "tensorboard" / _slug(run)), purge_step=step + 1 if step else None)
    writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in config.items()), step)

    def log(at: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, at)
        writer.flush()

    return _Calls(log, writer.close)


def _wandb(run: str, folder: Path, config: dict[str, Any], step: int) -> Tracker:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb: Any = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run,
        id=_slug(run),
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=config,
        # no source code, no git state, no terminal output, no machine's name leaves by this door
        settings=wandb.Settings(
            save_code=False,
            disable_git=True,
            console="off",
            x_disable_meta=True,
            silent=True,
            init_timeout=60,
        ),
    )
    return _Calls(lambda at, values: opened.log(values, step=at), opened.finish)


def _trackio(run: str, folder: Path, config: dict[str, Any], step: int) -> Tracker:
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    trackio: Any = importlib.import_module("trackio")
    opened = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=run,
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
        config=config,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return _Calls(lambda at, values: opened.log(values, step=at), opened.finish)


def _mlflow(run: str, folder: Path, config: dict[str, Any], step: int) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow: Any = importlib.import_module("mlflow")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    place = os.environ.get("MLFLOW_TRACKING_URI") or _mlflow_database(folder)
    client = mlflow.tracking.MlflowClient(tracking_uri=place)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known is not None else client.create_experiment(name)
    number = client.create_run(experiment, run_name=run).info.run_id
    for key, value in config.items():
        client.log_param(number, key, str(value)[:6000])

    def log(at: int, values: dict[str, float]) -> None:
        for metric, value in values.items():
            client.log_metric(number, metric, value, step=at)

    return _Calls(log, lambda: client.set_terminated(number))


def _mlflow_database(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def _slug(text: str) -> str:
    """`text` as a name of a file or of a run that every tracker takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or PROJECT


_OPENERS: dict[str, _Open] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
