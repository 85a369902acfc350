"""How many calls `ultrachat` makes, and how long they are, before any is made."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.estimate import Estimate, Range, size, text_tokens
from zephyrctl.asking.seats import Seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.ultrachat.plan import Slot
from zephyrctl.stages.gen_sft.ultrachat.requests import (
    ANSWER,
    QUESTION_LIST,
    SUBTOPIC_LIST,
    USER_TURN,
    questions_request,
    subtopics_request,
    user_request,
)

_SUBTOPIC_BYTES = 40
"""A subtopic that is not known yet."""


def draw(
    sketch: Sketch, slots: Sequence[Slot], teacher: Seat, turns: tuple[int, int], sampling: Sampling
) -> None:
    """The lists that `slots` begin with, and their rounds: each answer sees the ones before it, and so does each user
    turn, in a request of its own. How many rounds a dialogue has is drawn later, so the mean is expected."""
    replies = {name: _reply(sketch, teacher, name, sampling) for name in (ANSWER, USER_TURN)}
    topics = {(slot.topic, slot.draw) for slot in slots}
    branches = {slot.branch: slot.topic for slot in slots}
    named = sum((_tokens(subtopics_request(topic)) for topic, _ in topics), Range())
    opened = sum((_tokens(questions_request(topic, "")) for topic in branches.values()), Range())
    opened = opened + text_tokens(_SUBTOPIC_BYTES, 0) * len(branches)
    counts = range(turns[0], turns[1] + 1)
    said, answer = replies[USER_TURN], replies[ANSWER]
    frame = _tokens(user_request("", "", (), may_end=True)) + text_tokens(_SUBTOPIC_BYTES, 0)
    asked, simulated, rounds = Range(), Range(), 0
    for n in counts:
        rounds += n
        asked = asked + said * (n * (n + 1) / 2) + answer * (n * (n - 1) / 2) + text_tokens(0, n * n)
        simulated = simulated + (said + answer) * (n * (n - 1) / 2) + frame * (n - 1)
    share = len(slots) / len(counts)
    expected = round(len(slots) * rounds / len(counts))
    longest = len(slots) * turns[1]
    lists = {SUBTOPIC_LIST: (len(topics), named), QUESTION_LIST: (len(branches), opened)}
    for purpose, (calls, prompts) in lists.items():
        reply = _reply(sketch, teacher, purpose, sampling)
        sketch.add("teacher", teacher.provider, purpose, calls=calls, prompts=prompts, reply=reply)
    for purpose, calls, most, prompts in (
        (ANSWER, expected, longest, asked * share),
        (USER_TURN, expected - len(slots), longest - len(slots), simulated * share),
    ):
        sketch.add(
            "teacher",
            teacher.provider,
            purpose,
            calls=calls,
            most=most,
            prompts=prompts,
            reply=replies[purpose],
        )


def tokens_each(estimate: Estimate, dialogues: int) -> float:
    """The tokens of one dialogue on average: what both sides say."""
    said = sum(part.reply_tokens.likely for part in estimate.parts if part.purpose in (ANSWER, USER_TURN))
    return said / max(1, dialogues)


def _reply(sketch: Sketch, teacher: Seat, purpose: str, sampling: Sampling) -> Range:
    sample = (Message(role="user", content="x"),)
    return sketch.reply(teacher.provider, Ask(sample, sampling, purpose=purpose))


def _tokens(message: Message) -> Range:
    return text_tokens(size(message.content))
