"""What held-out numbers mean, in sentences: said at the end of an epoch, warned of where something goes wrong.

Pure functions. The bounds are where an effect is well beyond noise and known to matter; they decide nothing but words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

Scores = Mapping[str, float]

RISE = 0.01
"""Share by which a held-out loss must have risen above its lowest to be called worse."""
DISPLACED = 0.1
"""Nats per token by which chosen answers must have become less likely."""
FEWER_ENDS = 0.05
"""Share of answers that ended before and do not any more."""
FEW_ENDS = 0.5
"""Share of answers that end, below which a model does not know when to stop."""
LONGER = 1.5
"""Factor by which the model's own answers must have grown."""
FAR = 1.0
"""Nats per token between the model and the one it started from, from which on little of that one is left."""


@dataclass(frozen=True)
class Verdict:
    """One sentence; `bad` where the reader may want to change something."""

    text: str
    bad: bool = False
    kind: str = ""
    """What it is about, so that a warning that stays the same need not be said at every epoch."""


def verdicts(task: str, epochs: Sequence[Scores], before: Scores) -> list[Verdict]:
    """What to say after the newest of `epochs` (held-out scores, in order, each with its `epoch`), given those `before`
    the first step; names are those of `probes`."""
    if not epochs:
        return []
    now = epochs[-1]
    found = {
        "summary": _summary(now),
        "overfitting": _overfitting(epochs),
        "endings": _endings(task, now, before),
        "lengths": _lengths(now, before),
    }
    if task == "dpo":
        found |= {
            "chance": _chance(now),
            "displacement": _displacement(now, before),
            "distance": _distance(now),
        }
    return [replace(one, kind=kind) for kind, one in found.items() if one is not None]


def _summary(now: Scores) -> Verdict | None:
    shown = {
        "test/loss": "loss {:.4f}", "test/accuracy": "accuracy {:.1%}", "test/token_accuracy": "token accuracy {:.1%}",
        "test/margin": "margin {:.3f}", "test/logps/chosen": "chosen answers {:.1f} nats",
        "test/eos_rate": "{:.1%} of the answers end where they should",
        "test/kl": "KL from the start {:.4f} nats a token",
    }  # fmt: skip
    parts = [text.format(now[name]) for name, text in shown.items() if name in now]
    return Verdict(f"held out, epoch {_epoch(now)}: " + ", ".join(parts)) if parts else None


def _overfitting(epochs: Sequence[Scores]) -> Verdict | None:
    known = [one for one in epochs if "test/loss" in one]
    if len(known) < 2:
        return None
    best = min(known, key=lambda one: one["test/loss"])
    now = known[-1]["test/loss"]
    if now <= best["test/loss"] + RISE * abs(best["test/loss"]):
        return None
    return Verdict(
        f"the held-out loss has risen from {best['test/loss']:.4f} (epoch {_epoch(best)}) to {now:.4f}: the model now"
        f" memorises; the model of epoch {_epoch(best)} is likely the better one (--keep-epochs keeps each)",
        bad=True,
    )


def _endings(task: str, now: Scores, before: Scores) -> Verdict | None:
    if "test/eos_rate" not in now:
        return None
    share, earlier = now["test/eos_rate"], before.get("test/eos_rate", 0.0)
    if earlier - share > FEWER_ENDS:
        return Verdict(
            f"{share:.1%} of the held-out answers would end where they should; before training {earlier:.1%} would:"
            " the model unlearns to stop (are answers cut before their end? a larger --max-length keeps ends)",
            bad=True,
        )
    if share >= FEW_ENDS:
        return None
    remedy = "more --epochs, a larger --lr, or answers are cut before their end"
    if task == "dpo":
        remedy = "preferences teach it badly: begin with a model that sft has taught to stop"
    return Verdict(
        f"only {share:.1%} of the held-out answers would end where they should: the model has not learned to stop"
        f" ({remedy})",
        bad=True,
    )


def _lengths(now: Scores, before: Scores) -> Verdict | None:
    length, earlier = now.get("test/answer_tokens"), before.get("test/answer_tokens")
    if length is None or not earlier or length < LONGER * earlier:
        return None
    return Verdict(
        f"the model's own answers have grown from {earlier:.0f} to {length:.0f} tokens: longer need not be better"
        " (length_normalised=true in --set weighs long answers less)",
        bad=True,
    )


def _chance(now: Scores) -> Verdict | None:
    accuracy = now.get("test/accuracy")
    if accuracy is None or accuracy > 0.5:
        return None
    return Verdict(
        f"on held-out pairs the chosen answer wins in {accuracy:.1%}, no more often than by chance: either the"
        " training was too little (--epochs, --lr) or the preferences do not carry over to new prompts",
        bad=True,
    )


def _displacement(now: Scores, before: Scores) -> Verdict | None:
    name, length = "test/logps/chosen", now.get("test/chosen_tokens", 0.0)
    if name not in now or name not in before:
        return None
    fall = before[name] - now[name]
    if fall < DISPLACED * max(length, 1.0):
        return None
    return Verdict(
        f"the chosen answers themselves have become less likely, by a factor of {_factor(fall)} each on average"
        f" ({before[name]:.1f} to {now[name]:.1f} nats): likelihood displacement. The margin grows only because the"
        " rejected ones fall further, and the probability goes to answers that nobody rated. Usual to a degree; if"
        " answers get worse: a larger --beta, fewer --epochs, a smaller --lr, or --set nll_weight=0.1",
        bad=True,
    )


def _distance(now: Scores) -> Verdict | None:
    distance = now.get("test/kl")
    if distance is None or distance < FAR:
        return None
    return Verdict(
        f"the model is {distance:.2f} nats a token away from the one it started from, on that one's own answers: little"
        " of it is left (a larger --beta or a smaller --lr holds it closer)",
        bad=True,
    )


def _epoch(scores: Scores) -> str:
    return f"{round(scores.get('epoch', 0.0), 2):g}"


def _factor(nats: float) -> str:
    """e to the `nats`, readable at any size."""
    if nats < math.log(1000):
        return f"{math.exp(nats):.3g}"
    return f"10^{nats / math.log(10):.0f}"
