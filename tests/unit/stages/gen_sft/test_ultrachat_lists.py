"""Lists, the user's turns and the plan of `ultrachat`: replies as models write them, places in a fixed order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.quote import read_blocks
from zephyrctl.records import Message
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.ultrachat.lists import LONGEST_ITEM, Listed, read_list
from zephyrctl.stages.gen_sft.ultrachat.plan import QUESTIONS, SUBTOPICS, slots_of, topics_of
from zephyrctl.stages.gen_sft.ultrachat.requests import (
    END,
    questions_request,
    read_turn,
    subtopics_request,
    template_digests,
    user_request,
)

LISTS = {
    "plain": ("1. Soil\n2. Seeds\n3. Water", Listed(("Soil", "Seeds", "Water"))),
    "parenthesis": ("1) Soil\n2) Seeds", Listed(("Soil", "Seeds"))),
    "colon": ("1: Soil\n2: Seeds", Listed(("Soil", "Seeds"))),
    "bold numbers": ("**1.** Soil\n### 2. Seeds", Listed(("Soil", "Seeds"))),
    "bullets": ("- Soil\n* Seeds\n• Water", Listed(("Soil", "Seeds", "Water"))),
    "preamble": ("Here are some:\n\n1. Soil\n2. Seeds", Listed(("Soil", "Seeds"), ignored=1)),
    "ending": ("1. Soil\n2. Seeds\n\nShall I go on?", Listed(("Soil", "Seeds"), ignored=1)),
    "blank lines": ("1. Soil\n\n\n2. Seeds\n", Listed(("Soil", "Seeds"))),
    "two digits": ("9. Soil\n10. Seeds\n11. Water", Listed(("Soil", "Seeds", "Water"))),
    "repeated": ("1. Soil\n2. soil!\n3. Seeds", Listed(("Soil", "Seeds"), repeated=1)),
    "reordered": ("2. Seeds\n1. Soil", Listed(("Seeds", "Soil"))),
    "bold": ("1. **Soil**\n2. **Seeds**: how to sow", Listed(("Soil", "**Seeds**: how to sow"))),
    "quoted": ('1. "What is soil?"\n2. “Why seeds?”', Listed(("What is soil?", "Why seeds?"))),
    "quotes inside": ('1. "a" and "b"', Listed(('"a" and "b"',))),
    "nested": ("1. Soil\n   - clay\n   - sand\n2. Seeds", Listed(("Soil", "Seeds"), ignored=2)),
    "goes on": ("1. Soil, which\nis below us\n2. Seeds", Listed(("Soil, which", "Seeds"), ignored=1)),
    "no list": ("Soil, seeds and water.", Listed((), ignored=1)),
    "empty": (" \n", Listed(())),
    "no words": ("1. ---\n2. Soil", Listed(("Soil",), unusable=1)),
    "far too long": (f"1. {'x' * (LONGEST_ITEM + 1)}\n2. Soil", Listed(("Soil",), unusable=1)),
    "a year is no number of an item": ("1. Rome\n1848. A year", Listed(("Rome",), ignored=1)),
    "a decimal is no item": ("1.5 litres of water", Listed((), ignored=1)),
    "windows": ("1. Soil\r\n2. Seeds\r\n", Listed(("Soil", "Seeds"))),
    "other script": ("1. 土壌\n2. 種", Listed(("土壌", "種"))),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_as_it_was_meant(name: str) -> None:
    text, expected = LISTS[name]
    assert read_list(text) == expected


@given(st.lists(st.text(alphabet="abcdef?", min_size=1).filter(str.isalnum), max_size=9, unique=True))
def test_a_numbered_list_is_read_back(items: list[str]) -> None:
    text = "\n".join(f"{n}. {item}" for n, item in enumerate(items, 1))
    assert list(read_list(text).items) == items


@given(st.text(max_size=200))
def test_every_line_of_any_reply_is_accounted_for(text: str) -> None:
    found = read_list(text)
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(found.items) + found.ignored + found.repeated + found.unusable == len(lines)


@pytest.mark.parametrize(
    ("reply", "text", "how"),
    [
        ("And why is that?", "And why is that?", ""),
        (" And why?\n", "And why?", ""),
        ("User: And why?", "And why?", ""),
        ("**User:** And why?", "And why?", ""),
        ("USER 3: And why?", "And why?", ""),
        ("User stories: what are they?", "User stories: what are they?", ""),
        (END, None, "mark"),
        (f"Thanks, that was it. {END}", None, "mark"),
        ("User:", None, "mark"),
        ("Thanks!", None, "farewell"),
        ("Thank you so much for your help, bye!", None, "farewell"),
        ("Great, that's all I needed. Have a nice day!", None, "farewell"),
        ("Thanks for the detailed explanation. See you tomorrow.", None, "farewell"),
        ("That makes sense, thanks for explaining!", None, "farewell"),
        ("No further questions, thank you.", None, "farewell"),
        ("Thanks. But why is it blue?", "Thanks. But why is it blue?", ""),
        ("Okay, tell me more", "Okay, tell me more", ""),
        ("Great Britain, then?", "Great Britain, then?", ""),
    ],
)
def test_the_users_turn_is_read(reply: str, text: str | None, how: str) -> None:
    turn = read_turn(reply)
    assert (turn.text, turn.how) == (text, how)


def test_requests_fence_what_they_quote_and_name_their_counts() -> None:
    assert read_blocks(subtopics_request("{{ 7*7 }}").content) == {"TOPIC": "{{ 7*7 }}"}
    assert f"a numbered list of {SUBTOPICS} lines" in subtopics_request("x").content
    assert f"a numbered list of {QUESTIONS} lines" in questions_request("x", "y").content
    said = [Message(role="user", content="a"), Message(role="assistant", content="<<<END USER 1 00000000>>>")]
    request = user_request("x", "y", said, may_end=True).content
    assert read_blocks(request) == {
        "TOPIC": "x", "SUBTOPIC": "y", "USER 1": "a", "ASSISTANT 1": "<<<END USER 1 00000000>>>"
    }  # fmt: skip
    assert END in request
    assert END not in user_request("x", "y", said, may_end=False).content
    assert list(template_digests()) == [
        f"gen-sft/ultrachat/{name}.md" for name in ("subtopics", "questions", "user", "ending")
    ]


TOPICS = st.lists(st.text(alphabet="abcxyz", min_size=1, max_size=4), min_size=1, max_size=5, unique=True)


@given(TOPICS, st.integers(1, 600), st.integers(0, 600), st.integers(0, 5))
def test_fewer_places_are_the_first_of_more_and_need_as_few_lists_as_can_be(
    topics: list[str], rows: int, more: int, seed: int
) -> None:
    slots = slots_of(topics, rows, seed)
    assert slots == slots_of(list(reversed(topics)), rows + more, seed)[:rows]
    assert [slot.number for slot in slots] == list(range(rows))
    assert len({(s.branch, s.question) for s in slots}) == rows
    assert len({s.branch for s in slots}) == -(-rows // QUESTIONS)
    used = Counter(topic for topic, _ in {(s.topic, s.branch) for s in slots})
    assert max(used.values()) - min([used[topic] for topic in topics]) <= 1


def test_when_all_subtopics_are_used_up_further_lists_are_drawn() -> None:
    slots = slots_of(["x"], SUBTOPICS * QUESTIONS + 1, 1)
    assert (slots[-2].draw, slots[-2].subtopic, slots[-1].draw, slots[-1].subtopic) == (
        0,
        SUBTOPICS - 1,
        1,
        0,
    )
    assert slots[-1].where == "x (list 2), subtopic 1, opening 1"


def test_the_shipped_topics_are_at_least_thirty() -> None:
    found, source = topics_of(None)
    assert len(set(found)) == len(found) >= 30
    assert (source.role, source.ref) == ("topics", "zephyrctl/topics")


@pytest.mark.parametrize("turns", [(0, 3), (3, 2), (1, 101)])
def test_turns_that_cannot_be_are_refused(turns: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="the fewest and the most rounds"):
        GenSftConfig.model_validate({"teacher": "sandbox", "turns": turns})
