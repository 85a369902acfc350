"""The sandbox's teacher, pool and judge: they read what they are sent and reply in a real teacher's formats.

A reply depends on role, messages, draw and seed alone. How often a role is wrong, how wordy it is and how
biased it judges are settings of the role, read by no stage.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from zephyrctl.sandbox import bootstrapping, conversing, judging, world
from zephyrctl.sandbox.answers import PHRASES
from zephyrctl.sandbox.refining import refine
from zephyrctl.sandbox.requests import Request, is_repair, read_request

CANNOT_HELP = "I can only help with small exercises about words and numbers."


@dataclass(frozen=True)
class Behaviour:
    """How a role behaves.

    `error_rate`: share of its answers that are wrong. `verbosity`: share of its answers wrapped in a phrase.
    `position_effect`, `length_effect`, `brevity`, `judge_noise`: weaknesses as a judge, in points of the 1-5 scale
    (see `judging.Bias`). `garble_rate`: share of its ratings of completions that lose their form; asked once more,
    it says in good form what it had decided.
    """

    error_rate: float
    verbosity: float = 0.3
    position_effect: float = 0.25
    length_effect: float = 0.25
    brevity: float = 0.5
    judge_noise: float = 0.35
    garble_rate: float = 0.0


# `judge` grades what the stages make, as most judges would: a little for the first and for the long, and against
# wrapping. `fair-judge` and `biased-judge` are for whoever looks for such effects: none at all, and clear ones.
ROLES: Mapping[str, Behaviour] = MappingProxyType(
    {
        "teacher": Behaviour(error_rate=0.35),
        "judge": Behaviour(
            error_rate=0.05, position_effect=0.2, length_effect=0.2, judge_noise=0.3, garble_rate=0.02
        ),
        "fair-judge": Behaviour(
            error_rate=0.05,
            position_effect=0.0,
            length_effect=0.0,
            brevity=0.0,
            judge_noise=0.3,
            garble_rate=0.02,
        ),
        "biased-judge": Behaviour(
            error_rate=0.05,
            position_effect=0.3,
            length_effect=0.8,
            brevity=0.0,
            judge_noise=0.3,
            garble_rate=0.02,
        ),
        "pool-a": Behaviour(error_rate=0.10, verbosity=0.2),
        "pool-b": Behaviour(error_rate=0.30, verbosity=0.5),
        "pool-c": Behaviour(error_rate=0.50, verbosity=0.3),
        "pool-d": Behaviour(error_rate=0.75, verbosity=0.6),
    }
)


def reply(
    role: str, messages: Sequence[Mapping[str, str]], *, draw: int, seed: int, temperature: float
) -> str:
    """The role's reply to chat messages: an answer, a refined instruction or a judgement, as the text asks.

    At temperature 0 every draw gives the same reply. Text of another world gets a polite or middling reply,
    never an error. Raises KeyError for an unknown role.
    """
    behaviour = ROLES[role]
    repaired = is_repair(messages)  # The same judge with the same chances: what was decided stays decided.
    said = [[m.get("role", ""), m.get("content", "")] for m in (messages[:-2] if repaired else messages)]
    basis = json.dumps([role, said, seed, draw if temperature > 0 else 0], ensure_ascii=True)
    rng = random.Random(int.from_bytes(hashlib.sha256(basis.encode()).digest()[:16], "big"))
    made_up = bootstrapping.respond(messages, behaviour.error_rate, rng)
    made_up = conversing.respond(messages, rng) if made_up is None else made_up
    if made_up is not None:
        return made_up
    request = read_request(messages)
    if request.kind == "chat":
        return _answer(request.turns, behaviour, rng)
    if request.kind == "refine":
        return refine(request.turns[0], rng)
    return _judge(request, behaviour, rng)


def _answer(turns: Sequence[str], behaviour: Behaviour, rng: random.Random) -> str:
    right = world.solve(turns)
    if right is None:
        return CANNOT_HELP
    words = world.wrong_answer(turns, rng) if rng.random() < behaviour.error_rate else right
    return rng.choice(PHRASES).format(words=words) if rng.random() < behaviour.verbosity else words


def _judge(request: Request, behaviour: Behaviour, rng: random.Random) -> str:
    bias = judging.Bias(
        behaviour.position_effect, behaviour.length_effect, behaviour.judge_noise, behaviour.brevity
    )
    if request.kind == "pairwise":
        return judging.compare(request.turns, request.answers[0], request.answers[1], bias, rng)
    if request.kind == "single":
        return judging.rate_single(request.turns, request.answers[0], bias, rng)
    rate = judging.rate_texts if request.kind == "aspect" else judging.rate_overall
    text = rate(request, bias, rng)
    spoiled = not request.repair and rng.random() < behaviour.garble_rate
    return judging.garbled(text, rng) if spoiled else text
