"""What the reference model says of the pairs: computed once, kept as an artifact, shared by whatever trains on them."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.manifest import InputRef, World
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.ref import as_name
from zephyrctl.artifacts.step import Step, Work
from zephyrctl.config import StageConfig, digest_of
from zephyrctl.errors import IntegrityError, NotFinite, TryAgain
from zephyrctl.events import Note
from zephyrctl.records import PairLogprobsRow
from zephyrctl.training.engine import EngineChoice
from zephyrctl.training.lora import Base
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
    """The arithmetic of the pass that asks the reference: that of training.

    Under bf16 autocast rounds what goes into products; FSDP2 and ZeRO round every weight beforehand, norms too.
    """
    from importlib.metadata import version

    four_bit = config.quantize != "none"
    rounded = choice.name in ("fsdp2", "zero2", "zero3") or four_bit
    held = "weights" if rounded else "autocast"
    return {
        **({"bitsandbytes": version("bitsandbytes")} if four_bit else {}),
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
        """Makes the artifact of what a run left in `folder`; a pair that stands in both splits is kept once.

        Raises NotFinite for log-probabilities that no loss could be made of.
        """
        spoken = read_reference(folder)
        _require_finite(spoken)
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
            self._adopt(rows)

    def _adopt(self, rows: Mapping[str, PairLogprobsRow]) -> None:
        """Takes the artifact of another run for this one's where both have the same to the last bit."""
        done = self.step.done()
        if done is None or done.artifact is None:
            return
        kept = {row.pair: row for _, _, row in done.artifact.rows() if isinstance(row, PairLogprobsRow)}
        if kept == rows:
            self.artifact = done.artifact


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
    model = Base.of(init).name.partition("@")[0].rpartition("/")[2]
    name = as_name(f"ref-{as_name(model, 'model')}", "ref-model")
    step = Step(work, settings, name=name, kind="logprobs", inputs=inputs, world=world)
    return Reference(step, train, test)


def _require_finite(spoken: Spoken) -> None:
    chosen, rejected = (a + b for a, b in zip(spoken.train, spoken.test, strict=True))
    wrong = sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in zip(chosen, rejected, strict=True))
    if wrong:
        raise NotFinite(
            f"the reference gives {wrong} of {len(chosen)} pairs a log-probability that is not finite; nothing was"
            " trained",
            hint="look at the starting model's weights (zephyrctl chat), or --set dtype=fp32",
        )


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


def sample(pairs: Sequence[PairTokens], count: int) -> list[int]:
    """The numbers of `count` pairs (all where there are fewer), evenly spread from the shortest to the longest."""
    rows = sorted(range(len(pairs)), key=lambda row: (pairs[row].length, row))
    if count >= len(rows):
        return rows
    if count == 1:
        return rows[-1:]
    return [rows[place * (len(rows) - 1) // (count - 1)] for place in range(count)]


def difference(
    found: Sequence[Sequence[float]],
    known: Sequence[Sequence[float]],
    counts: Sequence[Sequence[int]],
    dtype: str,
) -> tuple[float, float]:
    """The largest difference in nats per token between two pairs of lists, infinite where one is no number, and how
    much is allowed."""
    sides = (zip(a, b, n, strict=True) for a, b, n in zip(found, known, counts, strict=True))
    apart = [abs(x - y) / max(1, k) for side in sides for x, y, k in side]
    return max([0.0, *(math.inf if math.isnan(one) else one for one in apart)]), _ALLOWED[dtype]


def describe(artifact: Artifact | None) -> dict[str, Any]:
    """How a model's manifest names the log-probabilities it was trained with."""
    return {} if artifact is None else {"reference": {"ref": str(artifact.ref), "digest": artifact.digest}}
