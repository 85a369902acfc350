"""What the reference model says of the pairs: computed once, kept as an artifact, shared by whatever trains on them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef, World
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.config import StageConfig, digest_of
from zephyrctl.errors import IntegrityError, TryAgain
from zephyrctl.events import Note
from zephyrctl.records import PairLogprobsRow
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.tokens import PairTokens

_ALLOWED = {"fp32": 1e-5, "bf16": 2e-2}
"""Nats per token by which a recomputed log-probability may differ: what sums in another order come to."""


class ReferenceConfig(StageConfig):
    """What decides a reference's log-probabilities besides its weights and the token ids."""

    stage: ClassVar[str] = "logprobs"

    numerics: dict[str, str] = Field(default_factory=dict)
    """Arithmetic: dtype, how it is applied, attention, device, versions."""


@dataclass(frozen=True)
class Spoken:
    """Summed log-probabilities (chosen, rejected) of the training and of the held-out pairs, in their order."""

    train: tuple[list[float], list[float]]
    test: tuple[list[float], list[float]]


def pair_digest(pair: PairTokens) -> str:
    """What names a pair: sha256 of its token ids, each list with its length before it."""
    found = hashlib.sha256()
    for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
        found.update(array("q", [len(ids), *ids]).tobytes())
    return found.hexdigest()


def numerics(config: TrainingConfig, choice: EngineChoice) -> dict[str, str]:
    """The arithmetic of the pass that asks the reference: that of training."""
    from importlib.metadata import version

    held = "weights" if choice.name in ("zero2", "zero3") or config.quantize != "none" else "autocast"
    return {
        "dtype": config.dtype,
        "how": held if config.dtype == "bf16" else "float32",
        "quantize": config.quantize,
        "attention": choice.attention,
        "device": choice.device,
        "torch": version("torch").partition("+")[0],
        "transformers": version("transformers"),
    }


@dataclass
class Reference:
    """The step that keeps what a reference says of the pairs of one run."""

    step: Step
    train: Sequence[PairTokens]
    test: Sequence[PairTokens]
    artifact: Artifact | None = None

    def known(self, folder: Path) -> Path | None:
        """Puts what is known already into `folder` and returns it; None where the reference has to be asked.

        Raises IntegrityError where the artifact is damaged.
        """
        done = self.step.done()
        if done is None or done.artifact is None:
            return None
        self.artifact = done.artifact
        rows = {row.pair: row for _, _, row in done.artifact.rows() if isinstance(row, PairLogprobsRow)}
        self.step.work.emit(
            Note(f"{done.ref} holds what the reference says of these pairs; it is not asked again")
        )
        write_reference(folder, Spoken(_looked_up(self.train, rows), _looked_up(self.test, rows)))
        return folder

    def keep(self, folder: Path) -> None:
        """Makes the artifact of what a run left in `folder`; a pair that stands in both splits is kept once."""
        spoken = read_reference(folder)
        rows: dict[str, PairLogprobsRow] = {}
        for pairs, said in ((self.train, spoken.train), (self.test, spoken.test)):
            for pair, chosen, rejected in zip(pairs, *said, strict=True):
                name = pair_digest(pair)
                rows[name] = PairLogprobsRow(
                    pair=name,
                    chosen=chosen,
                    rejected=rejected,
                    chosen_tokens=len(pair.chosen_ids),
                    rejected_tokens=len(pair.rejected_ids),
                )
        try:
            with self.step.open() as staging:
                staging.write_rows("train", [rows[name] for name in sorted(rows)])
                staging.counts["rows"] = len(rows)
                self.artifact = staging.commit()
        except TryAgain as error:  # another run has the same pairs in hand; this one has what it needs
            self.step.work.emit(Note(f"the reference's word is not kept by this run: {error.message}"))


def reference_step(
    work: Work,
    config: TrainingConfig,
    choice: EngineChoice,
    init: ModelSource,
    train: Sequence[PairTokens],
    test: Sequence[PairTokens],
    world: World,
) -> Reference:
    """The step for these pairs under this model: known by the pairs' ids as a set, the weights and the numerics."""
    digest = digest_of(sorted({pair_digest(pair) for pairs in (train, test) for pair in pairs}))
    settings = ReferenceConfig(numerics=numerics(config, choice))
    inputs = [
        InputRef(role="init", ref=init.ref, digest=init.digest, kind="model"),
        InputRef(role="pairs", ref="token ids", digest=digest, kind="prefs"),
    ]
    name = "ref-" + (init.artifact.ref.name if init.artifact is not None else Path(init.path).name.lower())
    step = Step(work, settings, name=_safe(name), kind="logprobs", inputs=inputs, world=world)
    return Reference(step, train, test)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)


def _looked_up(
    pairs: Sequence[PairTokens], rows: Mapping[str, PairLogprobsRow]
) -> tuple[list[float], list[float]]:
    found = [rows[name] for name in map(pair_digest, pairs) if name in rows]
    if len(found) != len(pairs):
        raise IntegrityError(
            f"the stored log-probabilities lack {len(pairs) - len(found)} of {len(pairs)} pairs"
        )
    return [row.chosen for row in found], [row.rejected for row in found]


_FILES = ("train.chosen", "train.rejected", "test.chosen", "test.rejected")


def write_reference(folder: Path, spoken: Spoken) -> None:
    """Writes four arrays of float64 into `folder`."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for name, values in zip(_FILES, (*spoken.train, *spoken.test), strict=True):
        np.save(folder / f"{name}.npy", np.asarray(values, dtype=np.float64), allow_pickle=False)


def read_reference(folder: Path) -> Spoken:
    """What `write_reference` wrote."""
    import numpy as np

    a, b, c, d = (np.load(folder / f"{name}.npy", allow_pickle=False).tolist() for name in _FILES)
    return Spoken((a, b), (c, d))


def difference(
    found: Sequence[Sequence[float]],
    known: Sequence[Sequence[float]],
    counts: Sequence[Sequence[int]],
    dtype: str,
) -> tuple[float, float]:
    """The largest difference in nats per token between two pairs of lists, and how much is allowed."""
    worst = 0.0
    for a, b, n in zip(found, known, counts, strict=True):
        worst = max([worst, *(abs(x - y) / max(1, k) for x, y, k in zip(a, b, n, strict=True))])
    return worst, _ALLOWED[dtype]


def describe(artifact: Artifact | None) -> dict[str, Any]:
    """How a model's manifest names the log-probabilities it was trained with."""
    return {} if artifact is None else {"reference": {"ref": str(artifact.ref), "digest": artifact.digest}}
