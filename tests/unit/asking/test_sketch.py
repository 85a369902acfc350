"""Texts are counted as they are, replies as the ledger knows them, and else as guessed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.asking.estimate import Range
from zephyrctl.asking.sketch import GUESSED, Seen, Sketch, estimated, holds_any, seen_before
from zephyrctl.ledger.entries import Finished, Intent, Request, Run, StoredReply
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import Price, Tokens
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.records import Message

ASK = (Message(role="user", content="x"),)


@dataclass(frozen=True)
class Model:
    """A provider as far as an estimate looks at it: it reasons up to 100 tokens beyond the answer."""

    label: str = "gpt"
    origin: str = "https://api"
    price: Price | None = None

    def wire(self, ask: Ask) -> dict[str, Any]:
        return {"max_tokens": ask.sampling.max_tokens}

    def bound(self, body: dict[str, Any]) -> tuple[int, int]:
        return 50, body["max_tokens"] + 100


def draw(model: Any, calls: int = 10, limit: int = 1024) -> Any:
    def sketched(sketch: Sketch) -> None:
        for purpose in ("answer", "refinement"):
            reply = sketch.reply(model, Ask(ASK, Sampling(max_tokens=limit), purpose=purpose))
            sketch.add("teacher", model, purpose, calls=calls, prompts=Range(100, 200, 300), reply=reply)

    return sketched


def test_a_guess_by_purpose_up_to_what_the_request_allows() -> None:
    answer, refinement = estimated(draw(Model()), {}, batch=False).parts
    assert (answer.reply.likely, answer.reply.high) == (GUESSED["answer"], 1124)
    assert (refinement.reply.likely, refinement.reply.high) == (GUESSED["refinement"], 1124)
    assert answer.prompt == Range(10, 20, 30)
    short = estimated(draw(Model(), limit=0), {}, batch=False).parts[0]
    assert short.reply.likely == short.reply.high == 100


def test_a_model_that_was_seen_keeps_its_own_mean_over_all_its_calls() -> None:
    found = estimated(draw(Model()), {"gpt": Seen(500, 105.0)}, batch=False)
    assert found.reply_tokens.likely / found.calls == pytest.approx(105.0)
    answer, refinement = found.parts
    assert answer.reply.likely / refinement.reply.likely == pytest.approx(
        GUESSED["answer"] / GUESSED["refinement"]
    )
    few = estimated(draw(Model()), {"gpt": Seen(3, 105.0), "other": Seen(500, 1.0)}, batch=False)
    assert few.parts[0].reply.likely == GUESSED["answer"]


def test_no_calls_are_no_part() -> None:
    assert estimated(draw(Model(), calls=0), {}, batch=False).parts == ()


def reply(tokens: int) -> StoredReply:
    return StoredReply(b"{}", "text", "stop", Tokens(5, tokens), "gpt")


def fill(path: Path, *, stage: str, model: str, lengths: list[int]) -> None:
    with Ledger.open(path) as ledger:
        run = Run(f"run-{stage}", stage, "x")
        intents = [
            Intent(Request(f"{stage}{model}{i}", "openai", "https://api", "chat", model, {"n": i}, 0))
            for i in range(len(lengths))
        ]
        begun = ledger.begin_many(intents, run).result()
        done = [
            Finished(attempt, intent.request.key, reply(length))
            for attempt, intent, length in zip(begun, intents, lengths, strict=True)
            if isinstance(attempt, int)
        ]
        assert len(done) == len(lengths)
        ledger.finish_many(done).result()


def test_the_ledger_tells_how_long_replies_were_in_this_kind_of_stage(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    fill(path, stage="gen-sft", model="gpt", lengths=[100, 200, 300])
    fill(path, stage="gen-prefs", model="gpt", lengths=[10])
    fill(path, stage="gen-sft", model="other", lengths=[7])
    models: list[Any] = [Model(), Model("unseen"), Model(origin="https://elsewhere")]
    with Ledger.open(path) as ledger:
        assert seen_before(ledger, "gen-sft", models[:2]) == {"gpt": Seen(3, 200.0)}
        assert seen_before(ledger, "gen-prefs", models[:1]) == {"gpt": Seen(1, 10.0)}
        assert holds_any(ledger, models[:2])
        assert not holds_any(ledger, models[1:])


def test_a_ledger_that_is_not_there_holds_nothing_and_stays_away(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "none" / "ledger.sqlite") as ledger:
        models: list[Any] = [Model()]
        assert seen_before(ledger, "gen-sft", models) == {}
        assert not holds_any(ledger, models)
    assert not (tmp_path / "none").exists()
