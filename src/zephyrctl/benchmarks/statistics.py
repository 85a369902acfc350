"""Means and differences with honest intervals, and bounds for what failed. Pure, standard library only.

Rows of one prompt (its turns, both orders of a comparison) are not independent, so every interval is
*clustered*: whole prompts are the unit of sampling. Where models were trained with several seeds, the seeds
are a second, crossed cluster: the interval then speaks of new prompts and new training runs at once.

Which interval is used (`Estimate.method`), always at 95 %:

bootstrap      one training seed and at least 30 prompts: percentile bootstrap over prompts
               (Efron & Tibshirani 1993, ch. 13)
clustered-t    fewer prompts: mean +- t(C - 1) * clustered standard error; percentiles are too narrow there
crossed-t      several training seeds: the variances between prompts and between seeds (two-way clustering,
               Cameron, Gelbach & Miller 2011), each with the t quantile of its own few degrees of freedom.
               A crossed bootstrap would resample three seeds from three: where 95 % is meant it covers
               79-96 % in simulation (60 prompts, 3 seeds, little to much spread between seeds), this one
               93-95 %
wilson         all values at one end of their scale: Wilson's interval over prompts, stretched to the scale
none           a single prompt: no interval

A mean of marks with a scale never lies outside it, so its interval is cut there.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from zephyrctl.student_t import student_t_quantile

MIN_BOOTSTRAP_CLUSTERS = 30
MIN_VERDICT_CLUSTERS = 6
"""With fewer prompts no sign pattern is rare enough (2 * 0.5**5 > 0.05), so nothing is called resolved."""
DRAWS = 2000

_UPPER = 0.975
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Unit:
    """One graded answer. `prompt` is its cluster, `key` tells its rows apart, `seed` is the training seed."""

    prompt: str
    key: str
    value: float
    seed: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a difference with its 95 % interval. `low`/`high` None = no interval can be given."""

    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    seeds: int
    method: str

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero, given enough prompts for a verdict."""
        if self.low is None or self.high is None or self.clusters < MIN_VERDICT_CLUSTERS:
            return False
        return self.low > 0 or self.high < 0

    def shifted(self, by: float) -> "Estimate":
        """The same estimate with `by` added: a win rate against its neutral value is `shifted(-0.5)`."""
        low = None if self.low is None else self.low + by
        high = None if self.high is None else self.high + by
        return Estimate(self.value + by, low, high, self.n, self.clusters, self.seeds, self.method)


def mean_interval(
    units: Iterable[Unit], *, scale: tuple[float, float] | None = None, seed: int = 0
) -> Estimate | None:
    """The mean over rows with its interval clustered by prompt (and by training seed); None without rows.

    The row order does not matter. `scale` = the worst and best value there can be. `seed` seeds the bootstrap
    together with the prompts' names.
    """
    rows = sorted(units, key=lambda u: (u.prompt, u.seed, u.key, u.value))
    if not rows:
        return None
    seeds = len({u.seed for u in rows})
    value = math.fsum(u.value for u in rows) / len(rows)
    groups = _grouped(rows)
    low, high, method = _interval(rows, groups, value, scale, seed)
    if scale is not None and low is not None and high is not None:
        low, high = max(low, scale[0]), min(high, scale[1])
    return Estimate(value, low, high, len(rows), len(groups), seeds, method)


def paired_difference(one: Iterable[Unit], other: Iterable[Unit], *, seed: int = 0) -> Estimate | None:
    """`one` minus `other` over their common rows, with the interval of `mean_interval`; None without any.

    Rows are matched by (seed, prompt, key). A side with a single training seed (a base model, say) is matched
    with every seed of the other. Rows of one seed with equal keys raise ValueError: the pair is ambiguous.
    """
    first, second = _indexed(one), _indexed(other)
    seeds_first, seeds_second = {k[0] for k in first}, {k[0] for k in second}
    if seeds_first != seeds_second:
        if len(seeds_second) == 1:
            second = _spread(second, seeds_first)
        elif len(seeds_first) == 1:
            first = _spread(first, seeds_second)
    common = first.keys() & second.keys()
    return mean_interval((Unit(k[1], k[2], first[k] - second[k], k[0]) for k in common), seed=seed)


def fill_bounds(scores: Sequence[float | None], worst: float, best: float) -> tuple[float, float] | None:
    """The means if every failed row (None) were the worst, and the best, of the scale; None without rows."""
    if not scores:
        return None
    known = math.fsum(s for s in scores if s is not None)
    failed = sum(s is None for s in scores)
    return (known + failed * worst) / len(scores), (known + failed * best) / len(scores)


def _grouped(rows: Sequence[Unit]) -> dict[str, tuple[float, int]]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values[row.prompt].append(row.value)
    return {prompt: (math.fsum(v), len(v)) for prompt, v in values.items()}


def _interval(
    rows: Sequence[Unit],
    groups: Mapping[str, tuple[float, int]],
    value: float,
    scale: tuple[float, float] | None,
    seed: int,
) -> tuple[float | None, float | None, str]:
    if len(groups) < 2:
        return None, None, "none"
    if scale is not None and value in scale and all(row.value == value for row in rows):
        return *_wilson(value, len(groups), scale), "wilson"
    seeds = {row.seed for row in rows}
    if len(seeds) == 1 and len(groups) >= MIN_BOOTSTRAP_CLUSTERS:
        return *_bootstrap(groups, seed), "bootstrap"
    half = _half_width(rows, value, crossed=len(seeds) > 1)
    return value - half, value + half, "crossed-t" if len(seeds) > 1 else "clustered-t"


def _bootstrap(groups: Mapping[str, tuple[float, int]], seed: int) -> tuple[float, float]:
    """Percentiles of the mean over `DRAWS` resamples of whole prompts. Equal prompts draw equal resamples."""
    names = "\x1f".join([str(seed), *groups])
    rng = random.Random(
        int.from_bytes(hashlib.sha256(names.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    )
    sums, counts = [g[0] for g in groups.values()], [g[1] for g in groups.values()]
    places = range(len(sums))
    means = []
    for _ in range(DRAWS):
        drawn = rng.choices(places, k=len(sums))
        means.append(sum(map(sums.__getitem__, drawn)) / sum(map(counts.__getitem__, drawn)))
    means.sort()
    return _percentile(means, 1 - _UPPER), _percentile(means, _UPPER)


def _percentile(ordered: Sequence[float], p: float) -> float:
    place = p * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _half_width(rows: Sequence[Unit], value: float, *, crossed: bool) -> float:
    """Half the interval: sqrt(t(P - 1)^2 * variance between prompts + t(S - 1)^2 * what seeds add)."""
    by_prompt, prompts = _cluster_variance(rows, [r.prompt for r in rows], value)
    squared = student_t_quantile(_UPPER, prompts - 1) ** 2 * by_prompt
    if crossed:
        by_seed, seeds = _cluster_variance(rows, [r.seed for r in rows], value)
        by_both, _ = _cluster_variance(rows, [(r.prompt, r.seed) for r in rows], value)
        squared += student_t_quantile(_UPPER, seeds - 1) ** 2 * max(0.0, by_seed - by_both)
    return math.sqrt(squared)


def _cluster_variance(rows: Sequence[Unit], names: Sequence[Hashable], value: float) -> tuple[float, int]:
    """The variance of the mean from residual sums of clusters, with the C / (C - 1) factor; and C."""
    residuals: dict[Hashable, list[float]] = defaultdict(list)
    for name, row in zip(names, rows, strict=True):
        residuals[name].append(row.value - value)
    total = math.fsum(math.fsum(r) ** 2 for r in residuals.values())
    count = len(residuals)
    return total / len(rows) ** 2 * count / max(1, count - 1), count


def _wilson(value: float, n: int, scale: tuple[float, float]) -> tuple[float, float]:
    """Wilson's score interval for `n` prompts that all lie at one end of the scale."""
    reach = (scale[1] - scale[0]) * _Z**2 / (n + _Z**2)
    return (value, value + reach) if value == scale[0] else (value - reach, value)


def _indexed(units: Iterable[Unit]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for unit in units:
        name = (unit.seed, unit.prompt, unit.key)
        if name in found:
            raise ValueError(
                f"two rows for prompt {unit.prompt[:12]} ({unit.key}): a pair would be ambiguous"
            )
        found[name] = unit.value
    return found


def _spread(
    values: Mapping[tuple[str, str, str], float], seeds: Iterable[str]
) -> dict[tuple[str, str, str], float]:
    return {(seed, prompt, key): v for seed in seeds for (_, prompt, key), v in values.items()}
