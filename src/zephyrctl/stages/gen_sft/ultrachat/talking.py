"""Dialogues as they are held: their lists first, then turn by turn, side by side.

Every request depends on the dialogue's own past only, and its sampling seed on its text only, so neither arrival order
nor what else is in the run changes a dialogue. Equal requests (the list that ten dialogues begin with) are one request.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from zephyrctl.asking.seats import trouble
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.records import Message, prompt_id, row_seed
from zephyrctl.stages.gen_sft.ultrachat.lists import plain_form, read_list
from zephyrctl.stages.gen_sft.ultrachat.plan import Slot
from zephyrctl.stages.gen_sft.ultrachat.requests import (
    ANSWER,
    QUESTION_LIST,
    SUBTOPIC_LIST,
    USER_TURN,
    questions_request,
    read_turn,
    subtopics_request,
    user_request,
)

Request = tuple[tuple[Message, ...], int]
"""Messages that end with the user, and which draw."""
AskAll = Callable[[Sequence[Request], str, str], Sequence[Answer | Failure]]
"""Asks the teacher: requests, what for, and a task name in, replies in the same order out."""
Trouble = tuple[str, str]
"""Why there is no dialogue, as (reason, detail)."""

NO_SUBTOPIC, NO_OPENING, TOO_SHORT, DUPLICATE = "no_subtopic", "no_opening", "too_short", "duplicate"

K = TypeVar("K", bound=Hashable)


@dataclass
class Talk:
    """One dialogue: its place, what it is about, what was said, and why there is none, if so.

    `ended` says how the user ended it before all its rounds were held (mark or farewell); empty = they all were.
    """

    slot: Slot
    subtopic: str = ""
    said: list[Message] = field(default_factory=list)
    ended: str = ""
    trouble: Trouble | None = None

    @property
    def rounds(self) -> int:
        """Rounds of user and assistant that are whole."""
        return len(self.said) // 2


@dataclass(frozen=True)
class _List:
    """The items of a list, or why there is none."""

    items: tuple[str, ...]
    trouble: Trouble | None


@dataclass(frozen=True)
class Host:
    """Holds dialogues of `turns` rounds, the fewest and the most."""

    ask: AskAll
    turns: tuple[int, int]
    seed: int

    def hold(self, slots: Sequence[Slot]) -> list[Talk]:
        """The dialogues of `slots`, in their order."""
        talks = [Talk(slot) for slot in slots]
        self._choose_subtopics(talks)
        self._open([talk for talk in talks if talk.trouble is None])
        on = [talk for talk in talks if talk.trouble is None]
        while on:
            self._answer(on)
            on = [talk for talk in on if talk.trouble is None and talk.rounds < self._drawn(talk)]
            self._go_on(on)
            on = [talk for talk in on if talk.trouble is None and not talk.ended]
        return talks

    def _choose_subtopics(self, talks: Sequence[Talk]) -> None:
        wanted = {(t.slot.topic, t.slot.draw): subtopics_request(t.slot.topic) for t in talks}
        lists = self._lists(wanted, SUBTOPIC_LIST, {key: key[1] for key in wanted})
        for talk in talks:
            found = lists[talk.slot.topic, talk.slot.draw]
            talk.subtopic = _item(talk, found, talk.slot.subtopic, NO_SUBTOPIC) or ""

    def _open(self, talks: Sequence[Talk]) -> None:
        """Finds the opening message of each. One that an earlier dialogue here opens with is not used again."""
        key = {id(talk): (talk.slot.topic, talk.subtopic, talk.slot.draw) for talk in talks}
        wanted = {k: questions_request(k[0], k[1]) for k in key.values()}
        lists = self._lists(wanted, QUESTION_LIST, {k: k[2] for k in wanted})
        seen: set[str] = set()
        for talk in talks:
            opening = _item(talk, lists[key[id(talk)]], talk.slot.question, NO_OPENING)
            if opening is None:
                continue
            talk.said.append(Message(role="user", content=opening))
            if plain_form(opening) in seen:
                talk.trouble = DUPLICATE, "an earlier dialogue opens with the same"
            seen.add(plain_form(opening))

    def _lists(self, wanted: Mapping[K, Message], purpose: str, draws: Mapping[K, int]) -> dict[K, _List]:
        """The lists that were asked for."""
        if not wanted:
            return {}
        replies = self.ask([((m,), draws[k]) for k, m in wanted.items()], purpose, f"lists of {purpose}")
        found: dict[K, _List] = {}
        for key, reply in zip(wanted, replies, strict=True):
            text, why = _text(reply)
            found[key] = _List(read_list(text).items, why)
        return found

    def _answer(self, talks: Sequence[Talk]) -> None:
        round_ = talks[0].rounds + 1
        replies = self.ask([(tuple(t.said), 0) for t in talks], ANSWER, f"round {round_}: answers")
        for talk, reply in zip(talks, replies, strict=True):
            text, talk.trouble = _text(reply)
            if talk.trouble is None:
                talk.said.append(Message(role="assistant", content=text))

    def _go_on(self, talks: Sequence[Talk]) -> None:
        """The user's next message of each, or the end of the conversation."""
        if not talks:
            return
        least = self.turns[0]
        requests = [user_request(t.slot.topic, t.subtopic, t.said, may_end=t.rounds >= least) for t in talks]
        task = f"round {talks[0].rounds + 1}: user turns"
        replies = self.ask([((request,), 0) for request in requests], USER_TURN, task)
        for talk, reply in zip(talks, replies, strict=True):
            text, talk.trouble = _text(reply)
            if talk.trouble is not None:
                continue
            turn = read_turn(text)
            if turn.text is not None:
                talk.said.append(Message(role="user", content=turn.text))
            elif talk.rounds >= least:
                talk.ended = turn.how
            else:
                talk.trouble = (
                    TOO_SHORT,
                    f"the user ended it after {talk.rounds} rounds, {least} are the fewest",
                )

    def _drawn(self, talk: Talk) -> int:
        """How many rounds the dialogue has, drawn by its opening message."""
        low, high = self.turns
        return low + row_seed(self.seed, "rounds", prompt_id(talk.said[:1])) % (high - low + 1)


def _item(talk: Talk, found: _List, place: int, missing: str) -> str | None:
    """The item of a list that the dialogue begins with; None, and the dialogue in trouble, where it is not there."""
    if found.trouble is not None:
        talk.trouble = found.trouble
        return None
    if place >= len(found.items):
        talk.trouble = missing, f"its list has {len(found.items)} usable items"
        return None
    return found.items[place]


def _text(reply: Answer | Failure) -> tuple[str, Trouble | None]:
    why = trouble(reply)
    return ("", why) if why is not None or isinstance(reply, Failure) else (reply.text, None)
