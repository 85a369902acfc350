"""The dSFT loop of the ZEPHYR paper: respond to a seed, refine the instruction from (instruction, response),
respond again.

A seed and what is refined from it is a chain. Chains grow side by side, in waves: every request of a wave
depends on the chain's own past only, and its sampling seed on its text only, so neither arrival order nor the
number of seeds changes a chain. What depends on other chains is decided afterwards, by the sieve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zephyrctl.asking.prompts import Seed
from zephyrctl.asking.seats import trouble
from zephyrctl.config import canonical, digest_of
from zephyrctl.curation.novelty import Pool
from zephyrctl.judges.templates import digest, render
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.quote import quote_blocks
from zephyrctl.records import Message

_PACKAGE, _REFINE = "zephyrctl.stages.gen_sft", "prompts/refine.md"

Dialogue = tuple[Message, ...]
AskAll = Callable[[Sequence[Dialogue], str, str], Sequence[Answer | Failure]]
"""Asks the teacher: dialogues that end with the user, what for, and a task name in, replies in the same order
out."""

ANSWER, REFINEMENT = "answer", "refinement"
NOT_NOVEL = "not_novel"


@dataclass(frozen=True)
class Reject:
    """A pair that could not be made: which round of which seed, and why."""

    seed: Seed
    round: int
    reason: str
    detail: str
    said: Dialogue

    def as_row(self) -> dict[str, str]:
        """The reject as the store keeps it."""
        row = {
            "seed_id": self.seed.row.prompt_id,
            "round": self.round,
            "messages": [m.model_dump() for m in self.said],
        }
        return {"where": self.seed.where, "reason": self.reason, "detail": self.detail, "row": canonical(row)}


@dataclass
class Round:
    """One pair of a chain: what was asked, what is still to be asked, the dialogue so far."""

    prompt: Dialogue
    waiting: list[str]
    said: list[Message]

    @property
    def instruction(self) -> str:
        """What the round asks first; of a refined round, what the teacher made."""
        return self.prompt[-1].content

    @property
    def identity(self) -> str:
        """Equal for rounds that ask the same."""
        return digest_of([[[m.role, m.content] for m in self.prompt], self._follow_ups()])

    def _follow_ups(self) -> list[str]:
        return [m.content for m in self.said[len(self.prompt) :] if m.role == "user"] + self.waiting


@dataclass
class Chain:
    """A seed, its finished rounds, and the reject that ended it, if any."""

    seed: Seed
    rounds: list[Round] = field(default_factory=list)
    end: Reject | None = None


def refine_request(instruction: str, response: str) -> str:
    """The request for the next instruction, the old one and its response as fenced blocks."""
    return render(_PACKAGE, _REFINE, blocks=quote_blocks({"INSTRUCTION": instruction, "RESPONSE": response}))


def template_digests() -> dict[str, str]:
    """The hash of the refine prompt, for manifest and step key."""
    return {"gen-sft/refine.md": digest(_PACKAGE, _REFINE)}


def grow(seeds: Sequence[Seed], rounds: int, ask: AskAll, *, novelty: float) -> list[Chain]:
    """The chains of `seeds`, in the same order, each with up to `rounds` refinements.

    A chain ends early where a reply fails, is refused, empty or cut off, or where the refined instruction
    equals the one it came from, or has a ROUGE-L above `novelty` with one that was made in this chain before:
    then it ends before that instruction is answered. Follow-up turns of a seed are asked one by one, with the
    teacher's own answers in context.
    """
    chains = [Chain(seed) for seed in seeds]
    for chain in chains:
        prompt = tuple(chain.seed.row.prompt)
        chain.rounds.append(Round(prompt, list(chain.seed.row.follow_ups), list(prompt)))
    _respond(chains, 0, ask)
    for number in range(1, rounds + 1):
        alive = [chain for chain in chains if chain.end is None]
        _refine(alive, number, ask, novelty)
        _respond([chain for chain in alive if chain.end is None], number, ask)
    return chains


def _respond(chains: Sequence[Chain], number: int, ask: AskAll) -> None:
    """Answers the open round of each chain, turn by turn."""
    open_ = list(chains)
    while open_:
        replies = ask([tuple(chain.rounds[-1].said) for chain in open_], ANSWER, f"round {number}: answers")
        going_on = []
        for chain, reply in zip(open_, replies, strict=True):
            current = chain.rounds[-1]
            text = _text_or_end(chain, reply, number, tuple(current.said))
            if text is None:
                chain.rounds.pop()
                continue
            current.said.append(Message(role="assistant", content=text))
            if current.waiting:
                current.said.append(Message(role="user", content=current.waiting.pop(0)))
                going_on.append(chain)
        open_ = going_on


def _refine(chains: Sequence[Chain], number: int, ask: AskAll, novelty: float) -> None:
    """Opens the next round of each chain with a refined instruction, or ends the chain.

    What is refined is the last instruction of the round's prompt and its answer: for a dialogue with
    follow-up turns, its first exchange. A system message stays; earlier turns do not, since the new
    instruction stands by itself.
    """
    if not chains:
        return
    requests = []
    for chain in chains:
        last = chain.rounds[-1]
        response = last.said[len(last.prompt)].content
        requests.append((Message(role="user", content=refine_request(last.prompt[-1].content, response)),))
    replies = ask(requests, REFINEMENT, f"round {number}: refinements")
    for chain, reply in zip(chains, replies, strict=True):
        prompt = chain.rounds[-1].prompt
        text = _text_or_end(chain, reply, number, prompt)
        if text is None:
            continue
        instruction = text.strip()
        if instruction == prompt[-1].content.strip():
            chain.end = Reject(chain.seed, number, "unchanged", "refined to the same instruction", prompt)
            continue
        system = tuple(m for m in prompt if m.role == "system")
        following = (*system, Message(role="user", content=instruction))
        near = _near_own(chain, instruction, novelty)
        if near is not None:
            chain.end = Reject(chain.seed, number, NOT_NOVEL, near, following)
            continue
        chain.rounds.append(Round(following, [], list(following)))


def _near_own(chain: Chain, instruction: str, novelty: float) -> str | None:
    """Which instruction of its own chain a new one is too near to, in words. The user's seed does not count."""
    made = Pool()
    for done in chain.rounds[1:]:
        made.add(done.instruction)
    near = made.most_similar(instruction, novelty)
    return None if near is None else near_words(near.score, chain.rounds[1 + near.index].instruction)


def near_words(score: float, earlier: str) -> str:
    """Why an instruction is not new, for its reject."""
    return f"ROUGE-L {score:.2f} with: {earlier}"


def _text_or_end(chain: Chain, reply: Answer | Failure, number: int, said: Dialogue) -> str | None:
    found = trouble(reply)
    if found is None:
        return reply.text if isinstance(reply, Answer) else None
    reason, detail = found
    chain.end = Reject(chain.seed, number, reason, detail, said)
    return None
