"""What goes along with a text's score besides what it says: its length, and who wrote it. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from zephyrctl.judges.agreement import SAME, share
from zephyrctl.judges.permutation import Block, Slope, slope
from zephyrctl.judges.sample import Judged, Sampled

_SWEEPS = 50
_SETTLED = 1e-10


def length_effect(prompts: Sequence[Sampled], source: str) -> dict[str, Any]:
    """How the score goes along with the length (characters), by decile and within prompts; slopes are in points per
    doubling of the length.

    raw          texts of the same prompt.
    by_author    the same, with what belongs to the author taken out of score and length (a wordy model may simply be
                 the better one). Its null hypothesis: among the texts of a prompt, which one is longer than its
                 author's habit has nothing to do with which one is rated above its author's habit. Longer answers that
                 really are better fall under it too: length and score go together, and it does not say why.
    equal_merit  texts of the same prompt that are worth the same, where that can be computed (None elsewhere). Its null
                 hypothesis is that the judge does not look at length: lengths are dealt anew among equally good texts.

    The last of them that there is, is the `test`; its p-value is `p`.
    """
    scored = _scored(prompts, source)
    authors = {author for texts in scored for author, _, _ in texts}
    found = {
        "raw": slope([([t[1] for t in p], [t[2] for t in p]) for p in scored], f"length {source}"),
        "by_author": slope(
            _less_authors(scored), f"length by author {source}", spent=max(0, len(authors) - 1)
        ),
    }
    equal = _equally_good(prompts, source)
    if equal is not None:
        found["equal_merit"] = slope(equal, f"length at equal merit {source}")
    test = list(found)[-1]
    return {
        "deciles": _deciles(prompts, source),
        **{name: slope_dict(one) for name, one in found.items()},
        "test": test,
        "p": found[test].p,
    }


def family_effect(
    prompts: Sequence[Sampled], source: str, own: str, family_of: Callable[[str], str | None]
) -> dict[str, Any]:
    """How the score goes along with being of the judge's own family, within prompts that have both.

    A positive difference is what favouring its own would look like, and what being better looks like.
    """
    means: dict[bool, list[float]] = {True: [], False: []}
    blocks = []
    for prompt in prompts:
        pairs = [(family_of(t.model) == own, s) for t in prompt.texts if (s := t.score(source)) is not None]
        for mine, score in pairs:
            means[mine].append(score)
        if len(pairs) > 1:
            blocks.append(([float(mine) for mine, _ in pairs], [score for _, score in pairs]))
    found = slope(blocks, f"family {source}")
    return {
        "own": {"texts": len(means[True]), "mean": _mean(means[True])},
        "other": {"texts": len(means[False]), "mean": _mean(means[False])},
        "difference": None if found.value is None else round(found.value, 6),
        "p": found.p,
        "prompts": found.blocks,
    }


def slope_dict(found: Slope) -> dict[str, Any]:
    """A slope as a document."""
    value = None if found.value is None else round(found.value, 6)
    return {"slope": value, "p": found.p, "prompts": found.blocks}


def _scored(prompts: Sequence[Sampled], source: str) -> list[list[tuple[str, float, float]]]:
    """Author, logarithm of the length to base 2, and score of the texts that have one, by prompt; prompts with two
    or more."""
    made = []
    for prompt in prompts:
        texts = [
            (t.model, math.log2(1 + t.length), s) for t in prompt.texts if (s := t.score(source)) is not None
        ]
        if len(texts) > 1:
            made.append(texts)
    return made


def _equally_good(prompts: Sequence[Sampled], source: str) -> list[Block] | None:
    """Lengths and scores of the different texts of one prompt and one merit; None where no merit is known. What several
    authors wrote word for word is one text with its mean score: equal scores of equal texts say nothing of length."""
    if all(text.merit is None for prompt in prompts for text in prompt.texts):
        return None
    blocks: list[Block] = []
    for prompt in prompts:
        groups: dict[float, dict[int, tuple[float, list[float]]]] = defaultdict(dict)
        for text in prompt.texts:
            score = text.score(source)
            if text.merit is not None and score is not None:
                length = math.log2(1 + text.length)
                groups[text.merit].setdefault(text.same, (length, []))[1].append(score)
        for group in groups.values():
            if len(group) > 1:
                scores = [math.fsum(given) / len(given) for _, given in group.values()]
                blocks.append(([length for length, _ in group.values()], scores))
    return blocks


def _less_authors(
    prompts: Sequence[Sequence[tuple[str, float, float]]],
) -> list[tuple[list[float], list[float]]]:
    """Lengths and scores less the means of their author and of their prompt, taken out in turn until nothing is left
    of either (least squares on both)."""
    authors = [[author for author, _, _ in p] for p in prompts]
    lengths = _settled([[x for _, x, _ in p] for p in prompts], authors)
    scores = _settled([[y for _, _, y in p] for p in prompts], authors)
    return list(zip(lengths, scores, strict=True))


def _settled(values: list[list[float]], authors: Sequence[Sequence[str]]) -> list[list[float]]:
    for _ in range(_SWEEPS):
        by_author: dict[str, list[float]] = defaultdict(list)
        for row, names in zip(values, authors, strict=True):
            mean = math.fsum(row) / len(row)
            for i, name in enumerate(names):
                row[i] -= mean
                by_author[name].append(row[i])
        means = {name: math.fsum(found) / len(found) for name, found in by_author.items()}
        if not means or max(map(abs, means.values())) < _SETTLED:
            break
        for row, names in zip(values, authors, strict=True):
            for i, name in enumerate(names):
                row[i] -= means[name]
    return values


def _deciles(prompts: Sequence[Sampled], source: str) -> list[dict[str, Any]]:
    """Texts in ten groups by length, equal lengths always in the same one, each with its mean score."""
    texts: list[Judged] = [t for p in prompts for t in p.texts if t.score(source) is not None]
    lengths = sorted(t.length for t in texts)
    groups: dict[int, list[Judged]] = defaultdict(list)
    for text in texts:
        middle = (bisect_left(lengths, text.length) + bisect_right(lengths, text.length) - 1) / 2
        groups[int(10 * middle / len(lengths))].append(text)
    return [
        {
            "decile": decile + 1,
            "shortest": min(t.length for t in group),
            "longest": max(t.length for t in group),
            "texts": len(group),
            "mean": _mean([s for t in group if (s := t.score(source)) is not None]),
        }
        for decile, group in sorted(groups.items())
    ]


def _mean(values: Sequence[float]) -> float | None:
    return share(math.fsum(values), len(values))


def opposite(first: Sequence[float | None], second: Sequence[float | None]) -> tuple[int, int]:
    """Of the pairs of texts that both scores order: how many they order oppositely, and how many there are."""
    known = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    against = ordered = 0
    for i, (a, x) in enumerate(known):
        for b, y in known[i + 1 :]:
            if abs(a - b) > SAME and abs(x - y) > SAME:
                ordered += 1
                against += (a > b) != (x > y)
    return against, ordered
