"""A teacher of letters for the tests of chains and of the sieve: answers `x` with `re: x`, refines `x` to `x+`."""

from collections.abc import Callable, Sequence

from zephyrctl.asking.prompts import Seed
from zephyrctl.curation.pipeline import make_pipeline
from zephyrctl.providers.base import Answer, Failure, Outcome
from zephyrctl.quote import read_blocks
from zephyrctl.records import Message, PromptRow, SftRow, prompt_id
from zephyrctl.stages.gen_sft.chains import Dialogue, grow
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.sieve import Sieve


def answer(text: str, outcome: Outcome = "text") -> Answer:
    return Answer(text, outcome, "stop", "m", None, "k", False)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def seed(text: str, *follow_ups: str, where: str = "seeds.jsonl:1", system: str | None = None) -> Seed:
    prompt = ([Message(role="system", content=system)] if system else []) + [user(text)]
    row = PromptRow(prompt_id=prompt_id(prompt), prompt=prompt, follow_ups=list(follow_ups), source="test")
    return Seed(where, "train", row)


class Teacher:
    """Answers `x` with `re: x` and refines `x` to `x+`, unless a table says otherwise; keeps what it was
    sent.
    """

    def __init__(self, special: dict[str, Answer | Failure] | None = None) -> None:
        self.special = special or {}
        self.sent: list[Dialogue] = []
        self.tasks: list[str] = []

    def __call__(self, dialogues: Sequence[Dialogue], purpose: str, task: str) -> list[Answer | Failure]:
        self.tasks.append(task)
        self.sent.extend(dialogues)
        return [self.reply(d) for d in dialogues]

    def reply(self, said: Dialogue) -> Answer | Failure:
        blocks = read_blocks(said[-1].content)
        if "INSTRUCTION" in blocks:
            old = blocks["INSTRUCTION"]
            return self.special.get(f"refine {old}", answer(f"  {old}+\n"))
        text = said[-1].content
        return self.special.get(text, answer(f"re: {text}"))


def empty_sieve(rounds: int, novelty: float = 1.0) -> Sieve:
    return Sieve(rounds, "teacher", novelty=novelty, screen=Screen(make_pipeline([])))


def made(
    seeds: Sequence[Seed],
    rounds: int,
    ask: Callable[[Sequence[Dialogue], str, str], Sequence[Answer | Failure]],
    novelty: float = 1.0,
) -> tuple[list[SftRow], Sieve]:
    sieve = empty_sieve(rounds, novelty)
    rows = [row for chain in grow(seeds, rounds, ask, novelty=novelty) for row in sieve.rows(chain)]
    possible = sieve.seeds * (rounds + 1)
    assert possible == sieve.kept + len(sieve.rejects) + sieve.not_reached()
    assert sieve.kept == len(rows)
    return rows, sieve


def said(row: SftRow) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in row.messages]
