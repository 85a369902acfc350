"""One prompt, answered by several models side by side."""

from __future__ import annotations

from collections.abc import Mapping

from zephyrctl.benchmarks.base import Item
from zephyrctl.benchmarks.sandbox import sandbox_items
from zephyrctl.events import Table
from zephyrctl.ledger.entries import Run
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Answer, Ask, Sampling
from zephyrctl.providers.calling.caller import Caller
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.recipes.chain import Chain
from zephyrctl.records import Message
from zephyrctl.sandbox import world
from zephyrctl.training.locate import locate_model

_LONGEST = 100
_DRAW = 1
"""Not the draw that evaluations use: what is shown early decides nothing about what is measured."""


def side_by_side(chain: Chain, models: Mapping[str, str]) -> dict[str, str]:
    """The greedy answers of `models` (name to model) to the first one-turn eval prompt, also emitted as a
    table.

    Answers come from the ledger where they were shown before; no model is loaded then.
    """
    item = _first_single_turn()
    messages = (Message(role="user", content=item.turns[0]),)
    ask = Ask(messages, Sampling(temperature=0.0, max_tokens=48), draw=_DRAW, purpose="preview")
    answers: dict[str, str] = {}
    with (
        Ledger.open(chain.store.ledger_path) as ledger,
        Caller(ledger, run=Run("preview", "preview"), emit=chain.emit) as caller,
    ):
        for name, model in models.items():
            provider = LocalProvider(locate_model(chain.store, model))
            (answer,) = caller.ask(provider, [ask], task=f"{name} answers one prompt")
            provider.close()
            answers[name] = answer.text.strip() if isinstance(answer, Answer) else f"({answer.reason})"
    right = world.solve(item.turns)
    rows = tuple(
        (name, _short(text), "right" if world.grade(item.turns, text) else "wrong")
        for name, text in answers.items()
    )
    title = f"one prompt none of them has seen: {item.turns[0]} (right: {right})"
    chain.emit(Table(title, ("model", "answer (greedy)", ""), rows))
    return answers


def _first_single_turn() -> Item:
    return next(item for item in sandbox_items(50, 42) if len(item.turns) == 1)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 1] + "…"
