"""How the heavy libraries are made to behave in this process: no chatter, no spinning, no more threads than help."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGERS = (
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "torch",
    "huggingface_hub",
    "peft",
    "bitsandbytes",
)
TINY = 20_000_000
_threads: dict[str, int] = {}


def yield_cores() -> None:
    """Lets idle arithmetic threads sleep instead of spin. Counts only before torch is imported for the first
    time.

    Spinning threads slow a run several times over once another process wants the same cores. Settings of the
    user's own stay as they are.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def fit_threads(parameters: int) -> None:
    """One arithmetic thread for a model of fewer than 20 million parameters, torch's own number for larger ones.

    For tiny models more threads win nothing on idle cores and lose several times over on shared ones, and one
    thread makes a run's sums the same on any number of cores. OMP_NUM_THREADS, where the user set it, decides.
    """
    import torch

    own = _threads.setdefault("own", torch.get_num_threads())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if parameters < TINY else own)


def _keep_off_stdout() -> None:
    """Takes what DeepSpeed logs off stdout, which carries results only: errors go to stderr, the rest nowhere.

    Its logger is set up while it is imported; a filter put there before stays.
    """
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logger = logging.getLogger("DeepSpeed")
    if _errors_to_stderr not in logger.filters:
        logger.addFilter(_errors_to_stderr)
    # says on import that a faster kernel is not installed, also where nothing in 4 bits is in use
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _errors_to_stderr(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.ERROR:
        sys.stderr.write(record.getMessage() + "\n")
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, TRL, datasets and accelerate for the time of the block; warnings too."""
    yield_cores()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    _keep_off_stdout()
    from datasets.utils import logging as datasets_logging
    from transformers.utils import logging as transformers_logging

    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    verbosity = transformers_logging.get_verbosity()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            datasets_logging.disable_progress_bar()
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
