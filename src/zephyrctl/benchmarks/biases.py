"""What a judge prefers besides quality: the place an answer is shown in, and its length. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zephyrctl.benchmarks.statistics import Estimate, Unit, mean_interval


@dataclass(frozen=True, slots=True)
class Game:
    """One prompt compared in both orders. Scores are the model's: 1 won, 0.5 tie, 0 lost; None = failed.

    `forward`: the model's answer was shown first; `backward`: second. `longer`: the model's answer was the
    longer one (None: equally long). `asked` is False where no judge was needed (identical answers).
    """

    prompt: str
    key: str
    forward: float | None
    backward: float | None
    longer: bool | None = None
    asked: bool = True
    seed: str = ""

    @property
    def score(self) -> float | None:
        """The mean of both orders; None unless both were judged: one alone carries the position bias."""
        if self.forward is None or self.backward is None:
            return None
        return (self.forward + self.backward) / 2


def first_shown_preferred(games: Iterable[Game]) -> Estimate | None:
    """How often the answer shown first is preferred (ties count half); 0.5 is a judge without position bias.

    Both orders of each pair enter, so the quality of the answers cancels out.
    """
    return mean_interval(
        Unit(g.prompt, g.key, (g.forward + 1 - g.backward) / 2, g.seed)
        for g in games
        if g.asked and g.forward is not None and g.backward is not None
    )


def flip_rate(games: Iterable[Game]) -> Estimate | None:
    """The share of pairs whose verdict changes with the order (win against loss, or either against tie)."""
    return mean_interval(
        Unit(g.prompt, g.key, float(g.forward != g.backward), g.seed)
        for g in games
        if g.asked and g.forward is not None and g.backward is not None
    )


def longer_preferred(games: Iterable[Game]) -> Estimate | None:
    """The mean verdict for the longer answer (in characters) over pairs of unequal length; 0.5 is neutral.

    It says that longer answers win, not why: a longer answer may also be the better one. Give it pairs of
    equal quality to see the judge's own leaning.
    """
    return mean_interval(
        Unit(g.prompt, g.key, g.score if g.longer else 1 - g.score, g.seed)
        for g in games
        if g.asked and g.longer is not None and g.score is not None
    )


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's r, as of answer length and score; None under three pairs or where a side never varies."""
    if len(pairs) < 3:
        return None
    mean_x = math.fsum(x for x, _ in pairs) / len(pairs)
    mean_y = math.fsum(y for _, y in pairs) / len(pairs)
    xx = math.fsum((x - mean_x) ** 2 for x, _ in pairs)
    yy = math.fsum((y - mean_y) ** 2 for _, y in pairs)
    xy = math.fsum((x - mean_x) * (y - mean_y) for x, y in pairs)
    floor = 1e-12 * len(pairs)
    if xx <= floor * max(1.0, mean_x**2) or yy <= floor * max(1.0, mean_y**2):
        return None
    return max(-1.0, min(1.0, xy / math.sqrt(xx * yy)))
