"""What is said when a stage that asked models is done: what it cost, and which part of the work it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.step import PARTIAL
from zephyrctl.errors import StageRejected
from zephyrctl.events import Emit, Note
from zephyrctl.money import UUSD, dollars

if TYPE_CHECKING:
    from zephyrctl.artifacts.writer import Staging


def tell_money(emit: Emit, teachers: Sequence[Mapping[str, Any]], *, usable: int, unit: str) -> None:
    """Tells what was paid now, what was not paid again, what is in doubt, and what a usable row costs.

    `teachers` is the caller's summary. Says nothing where nothing costs anything.
    """
    sentence = money_sentence(teachers, usable=usable, unit=unit)
    if sentence:
        emit(Note(sentence))


def money_sentence(teachers: Sequence[Mapping[str, Any]], *, usable: int, unit: str) -> str:
    """The sentence of `tell_money`; empty where nothing costs anything."""
    paid = sum(t["cost_usd"] or 0.0 for t in teachers) * UUSD
    saved = sum(t["saved_usd"] or 0.0 for t in teachers) * UUSD
    doubt = sum(t["in_doubt"]["usd"] for t in teachers) * UUSD
    unknown = [t["model"] for t in teachers if t["cost_usd"] is None]
    if not (paid or saved or doubt or unknown):
        return ""
    calls, replayed = sum(t["calls"] for t in teachers), sum(t["replayed"] for t in teachers)
    if len(unknown) == len(teachers):
        named = ", ".join(unknown)
        return f"asked now: {calls:,} calls, replayed: {replayed:,}, at a price that is not known ({named})"
    parts = [f"paid now: {dollars(paid)} for {calls:,} calls"]
    if replayed:
        parts.append(f"not paid again: {replayed:,} replies worth {dollars(saved)} at today's price")
    lost = sum(t["in_doubt"]["calls"] for t in teachers)
    if lost:
        parts.append(f"in doubt: {lost:,} calls, at most {dollars(doubt)}")
    if usable:
        parts.append(f"{dollars((paid + saved) / usable)} per usable {unit}")
    if unknown:
        parts.append("without " + ", ".join(unknown) + ", whose price is not known")
    return "; ".join(parts)


def partial_counts(finished: int, of: int) -> dict[str, Any]:
    """What marks an artifact that holds the finished ones only; nothing where all are finished."""
    return {} if finished == of else {PARTIAL: True, "finished": finished, "of": of}


def close_partial(staging: Staging, emit: Emit, *, finished: int, of: int, kept: int, unit: str) -> None:
    """Marks an artifact of the `finished` ones only, where some are not; it does not stand for the finished step.

    Raises StageRejected where nothing was kept.
    """
    if kept == 0:
        raise StageRejected(
            f"{finished:,} of {of:,} {unit} are finished and none can be kept: there is nothing to make an artifact of",
            hint="the same command without --accept-partial goes on asking",
        )
    marks = partial_counts(finished, of)
    if not marks:
        emit(Note(f"all {of:,} {unit} are finished: the artifact is whole"))
        return
    staging.counts.update(marks)
    staging.headline["finished"] = f"{finished} of {of} {unit}"
    emit(
        Note(
            f"a partial artifact: {finished:,} of {of:,} {unit} are finished; "
            "the same command without --accept-partial goes on"
        )
    )
