"""What stands behind a version's rows, for its card: teachers and their terms, judge, decontamination, cost, limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from zephyrctl.artifacts.behind import names_version, unchanged
from zephyrctl.artifacts.manifest import InputRef, Manifest
from zephyrctl.artifacts.store import Store

Section = tuple[str, list[str]]
TOLD = ("prompts", "sft", "feedback", "prefs")
"""The kinds whose cards tell what stands behind them."""


def ancestors(store: Store, inputs: Sequence[InputRef]) -> list[tuple[str, Manifest]]:
    """The manifests of everything in the store that `inputs` go back to, nearest first, each with its ref."""
    found: dict[str, Manifest] = {}
    waiting = list(inputs)
    while waiting:
        item = waiting.pop(0)
        if item.ref in found or not names_version(item):
            continue
        artifact = unchanged(store, item)
        if artifact is not None:
            found[item.ref] = artifact.manifest
            waiting += artifact.manifest.inputs
    return list(found.items())


def sections(manifest: Manifest, behind: Sequence[tuple[str, Manifest]]) -> list[Section]:
    """The sections of the card of rows: a title and its points; empty ones are left out."""
    if manifest.kind not in TOLD:
        return []
    every = [("this version", manifest), *(found for found in behind if found[1].kind in TOLD)]
    found = [
        ("Terms of the teachers", _terms(every)),
        ("Judge", list(_judge(every))),
        ("Decontamination", list(_contamination(every))),
        ("Cost", _cost(every)),
        ("Limits", _limits(manifest, every)),
    ]
    return [(title, points) for title, points in found if points]


@cache
def _known_terms() -> dict[str, Any]:
    import yaml

    text = files("zephyrctl.artifacts").joinpath("terms.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def _terms(every: Sequence[tuple[str, Manifest]]) -> list[str]:
    known = _known_terms()
    who: dict[str, list[str]] = {}
    for _, manifest in every:
        for teacher in manifest.teachers:
            origin, provider = str(teacher.get("origin", "")), str(teacher.get("provider", ""))
            key = "endpoint" if origin.startswith("endpoint:") else provider
            models = who.setdefault(key if key in known["providers"] else "local", [])
            if str(teacher.get("model")) not in models:
                models.append(str(teacher.get("model")))
    points = [
        f"{', '.join(models)}: {known['providers'][key]['about']} ({known['providers'][key]['where']})"
        for key, models in who.items()
    ]
    if not points:
        return []
    return [*points, f"as of {known['date']}; read the terms in force before you publish; no legal advice"]


def _judge(every: Sequence[tuple[str, Manifest]]) -> Iterator[str]:
    for ref, manifest in every:
        ratings = manifest.counts.get("ratings")
        if manifest.kind != "feedback" or not isinstance(ratings, Mapping) or not ratings.get("asked"):
            continue
        asked, missing = int(ratings["asked"]), sum(dict(ratings.get("unscored") or {}).values())
        audit = (manifest.model_extra or {}).get("audit") or {}
        judge = audit.get("judge") or manifest.config.get("teacher") or manifest.config.get("scorer")
        yield (
            f"{judge} rated {asked:,} times ({ref}): {(asked - missing) / asked:.1%} of the ratings could be read, "
            f"{int(ratings.get('not_applicable') or 0):,} were N/A; what could not be read is missing, never a default"
        )
        for sentence in audit.get("sentences") or []:
            yield str(sentence)


def _contamination(every: Sequence[tuple[str, Manifest]]) -> Iterator[str]:
    compared = False
    for ref, manifest in every:
        record = (manifest.model_extra or {}).get("decontamination")
        if not record or not record.get("suites"):
            continue
        compared = True
        suites = ", ".join(f"{suite['name']} ({suite['items']:,} items)" for suite in record["suites"])
        yield (
            f"{record.get('compared', 0):,} prompts of {ref} were compared with {suites}: "
            f"{record.get('hits', 0):,} overlap, {record.get('dropped', 0):,} were dropped"
        )
    if not compared:
        yield "the prompts were not compared with any evaluation suite"


def _cost(every: Sequence[tuple[str, Manifest]]) -> list[str]:
    points = []
    for ref, manifest in every:
        if not manifest.teachers:
            continue
        calls = sum(int(t.get("calls") or 0) for t in manifest.teachers)
        costs = [t.get("cost_usd") for t in manifest.teachers]
        known = sum(cost for cost in costs if cost is not None)
        unknown = "" if None not in costs else ", and calls whose price is not known"
        points.append(f"{ref}: {calls:,} calls, ${known:,.2f}{unknown}")
    return points


def _limits(manifest: Manifest, every: Sequence[tuple[str, Manifest]]) -> list[str]:
    limits = []
    if any(m.teachers for _, m in every):
        limits.append(
            "texts were written by models: they hold errors and biases, and nobody has checked them one by one"
        )
    if manifest.kind in ("feedback", "prefs"):
        limits.append(
            "preferences are a judge's, with its effects of position, length and family, not people's"
        )
    if manifest.world == "sandbox":
        limits.append("everything belongs to the sandbox and says nothing of real language")
    return limits
