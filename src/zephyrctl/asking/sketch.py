"""A stage's calls as parts of an estimate: texts as they are, replies as long as they were before or as a guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zephyrctl.asking.estimate import Estimate, Part, Range
from zephyrctl.providers.base import AnyProvider, Ask, Batching

if TYPE_CHECKING:
    import sqlite3

    from zephyrctl.ledger.ledger import Ledger

GUESSED = {
    "answer": 350, "refinement": 70, "completion": 350, "aspect": 180, "overall": 250, "judge": 250,
    "tasks": 300, "kind of task": 4, "instances": 250, "subtopics": 250, "questions": 250, "user turn": 40,
    "aspect repair": 40, "overall repair": 10,
}  # fmt: skip
"""Tokens of a reply by purpose, where nothing better is known: what current models tend to write, without hidden
reasoning."""

ENOUGH = 20
"""So many replies of a model in the ledger say more than a guess."""
_SAMPLE = 2000
_RUNS = 20


@dataclass(frozen=True)
class Seen:
    """Replies of one model to one kind of stage in the ledger, and their mean length in tokens."""

    replies: int
    mean: float


@dataclass
class Sketch:
    """Collects the parts. `scale` says by model how much longer than guessed its replies were found to be."""

    batch: bool = False
    scale: Mapping[str, float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    def reply(self, provider: AnyProvider, ask: Ask) -> Range:
        """The tokens of a reply to `ask`; high is what the request allows, hidden reasoning included.

        Raises UsageError for a setting that the model refuses.
        """
        _, most = provider.bound(provider.wire(ask))
        scale = self.scale.get(provider.label)
        likely = min(GUESSED[ask.purpose], most) * (scale or 1.0)
        low = likely / (3.0 if scale is None else 1.25)
        return Range(min(low, most), min(likely, most), float(most))

    def add(
        self,
        role: str,
        provider: AnyProvider,
        purpose: str,
        *,
        calls: int,
        prompts: Range,
        reply: Range,
        most: int | None = None,
    ) -> None:
        """Calls of one kind; `prompts` are the input tokens of all of them. No calls are no part."""
        if calls == 0:
            return
        bulk = isinstance(provider, Batching)
        self.parts.append(
            Part(
                role=role,
                who=provider.label,
                purpose=purpose,
                calls=calls,
                most=calls if most is None else most,
                prompt=prompts * (1 / calls),
                reply=reply,
                price=provider.price,
                bulk=bulk,
                batch=bulk and self.batch,
            )
        )


def estimated(draw: Callable[[Sketch], None], seen: Mapping[str, Seen], *, batch: bool) -> Estimate:
    """The estimate that `draw` sketches; a model of which enough was `seen` keeps its own mean length."""
    guess = Sketch(batch)
    draw(guess)
    scale = {
        who: found.mean / mean
        for who, found in seen.items()
        if found.replies >= ENOUGH and (mean := _mean_guess(guess.parts, who)) > 0
    }
    if not scale:
        return Estimate(tuple(guess.parts))
    better = Sketch(batch, scale)
    draw(better)
    return Estimate(tuple(better.parts))


def _mean_guess(parts: list[Part], who: str) -> float:
    mine = [part for part in parts if part.who == who]
    calls = sum(part.calls for part in mine)
    return sum(part.reply_tokens.likely for part in mine) / calls if calls else 0.0


def seen_before(ledger: Ledger, stage: str, providers: list[AnyProvider]) -> dict[str, Seen]:
    """What the ledger holds of these models' replies to earlier runs of the stage, by label."""
    if not ledger.path.exists():
        return {}
    query = f"""
        SELECT COUNT(*), AVG(tokens) FROM (
            SELECT a.completion_tokens AS tokens FROM attempt a JOIN request r ON r.key = a.key
            WHERE a.run_id IN (SELECT id FROM run WHERE stage = ? ORDER BY created DESC LIMIT {_RUNS})
            AND a.state = 'ok' AND a.completion_tokens > 0 AND r.origin = ? AND r.model = ? LIMIT {_SAMPLE})
    """

    def look(connection: sqlite3.Connection) -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for provider in providers:
            row: Any = connection.execute(query, (stage, provider.origin, provider.label)).fetchone()
            if row[0]:
                found[provider.label] = Seen(int(row[0]), float(row[1]))
        return found

    return ledger.read(look)


def holds_any(ledger: Ledger, providers: list[AnyProvider]) -> bool:
    """Whether the ledger has any reply of any of these models, to whatever was asked."""
    if not ledger.path.exists():
        return False
    query = """SELECT 1 FROM request r JOIN response p ON p.key = r.key
               WHERE r.origin = ? AND r.model = ? LIMIT 1"""

    def look(connection: sqlite3.Connection) -> bool:
        return any(connection.execute(query, (p.origin, p.label)).fetchone() for p in providers)

    return ledger.read(look)
