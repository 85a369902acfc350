"""A few rows on which editions differ: short ones, one with a system turn, one of several turns, and ones too long."""

from __future__ import annotations

from zephyrctl.records import Message, PreferenceRow, SftRow, prompt_id

_COUNT = "one two three four five six seven eight nine ten "
_LONG = _COUNT * 400
"""Longer than what any edition keeps, whatever the tokenizer: at least a token for each of its 4,000 words."""


def sample_dialogues() -> list[tuple[str, SftRow]]:
    """(name, row) of dialogues for SFT."""
    return [
        ("one turn", _dialogue("Name a colour.", "Blue.")),
        ("several turns", _dialogue("Add 2 and 3.", "5", "And 4 more?", "9")),
        ("system turn", _dialogue("Which animal barks?", "Dogs.", system="Answer in one word.")),
        ("long answer", _dialogue("Count as far as you can.", _LONG)),
    ]


def sample_pairs() -> list[tuple[str, PreferenceRow]]:
    """(name, row) of preferences for DPO."""
    return [
        ("one turn", _pair(["Name a fruit."], "An apple.", "Bread")),
        ("several turns", _pair(["Name a fruit.", "An apple.", "Another one?"], "A pear.", "No.")),
        ("long prompt", _pair([_LONG], "That is a count.", "I do not know.")),
        ("long answer", _pair(["Count as far as you can."], _LONG, "One, two, and so on.")),
    ]


def _turns(texts: list[str]) -> list[Message]:
    return [
        Message(role="user" if number % 2 == 0 else "assistant", content=text)
        for number, text in enumerate(texts)
    ]


def _dialogue(*texts: str, system: str | None = None) -> SftRow:
    turns = _turns(list(texts))
    opening = [Message(role="system", content=system)] if system is not None else []
    identity = prompt_id([*opening, turns[0]])
    return SftRow(row_id=identity, prompt_id=identity, messages=[*opening, *turns])


def _pair(prompt: list[str], chosen: str, rejected: str) -> PreferenceRow:
    turns = _turns(prompt)
    return PreferenceRow(
        prompt_id=prompt_id(turns),
        prompt=turns,
        chosen=[Message(role="assistant", content=chosen)],
        rejected=[Message(role="assistant", content=rejected)],
    )
