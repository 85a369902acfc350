"""The world: right answers, grading, mistakes, and the split between train and eval."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.sandbox import world
from zephyrctl.sandbox.answers import PHRASES, closeness, read_words
from zephyrctl.sandbox.families import FAMILIES, LINKS

SEEDS = st.integers(min_value=0, max_value=2**32)
FAMILY = st.sampled_from(FAMILIES)


@pytest.mark.parametrize(
    ("turns", "right"),
    [
        (["Sort these words: pear fig cat"], "cat fig pear"),
        (["Write pear, fig and cat from A to Z"], "cat fig pear"),
        (["Sort these words: pear fig cat", "Now in reverse order."], "pear fig cat"),
        (["Reverse the order of these words: axe bus cot"], "cot bus axe"),
        (["What is 17 + 5?"], "22"),
        (["What is 17 + 5?", "And 3 more?"], "25"),
        (["Take 12 away from 40."], "28"),
        (["Which number is the largest: 12 71 45?"], "71"),
        (["Give the biggest of 9 or 10."], "10"),
        (["What are the opposites of hot big?"], "cold small"),
        (["Write the plural of each word: fox peach dress cat"], "foxes peaches dresses cats"),
        (["Say fig bus 2 times."], "fig bus fig bus"),
        (["Which word comes last in fig bus cat?"], "cat"),
        (["Put fig bus in upper case."], "FIG BUS"),
        (["Shout these words: fig bus", "And the other way round?"], "BUS FIG"),
        (["Which number comes next: 10 13 16?"], "19"),
        (["Name the category of each word: owl van"], "animal vehicle"),
        (["Say what owl van are.", "Keep only the first word.", "And in upper case?"], "ANIMAL"),
        (["Say what owl van are.", "What is 20 + 5?"], "25"),
    ],
)
def test_known_answers(turns: list[str], right: str) -> None:
    assert world.solve(turns) == right
    assert world.grade(turns, right)


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [""],
        ["Who wrote Hamlet?"],
        ["Now in reverse order."],
        ["Write the plural of each word: sheep"],
        ["What is 3 - 20?"],
        ["Which number comes next: 1 2 4?"],
        ["Say fig 99 times."],
        ["Sort these words: pear fig", "And 3 more?"],
        ["Sort these words:"],
        ["What is 12345678901234567890 + 2?"],
    ],
)
def test_text_of_another_world_has_no_answer(turns: list[str]) -> None:
    assert world.solve(turns) is None
    assert world.closeness(turns, "anything") is None
    assert not world.grade(turns, "anything")
    with pytest.raises(ValueError, match="not an instruction"):
        world.wrong_answer(turns, random.Random(0))


@given(family=FAMILY, seed=SEEDS)
def test_every_family_solves_what_it_asks(family: world.Family, seed: int) -> None:
    task = world.draw_task(family, random.Random(seed))
    reading = world.read(task.turns)
    right = world.solve(task.turns)
    assert reading is not None
    assert right is not None
    assert reading.family.name == family.name
    assert world.closeness(task.turns, right) == 1
    for phrase in ("{words}", "{words}.", " {words}\n", *PHRASES):
        assert world.grade(task.turns, phrase.format(words=right)), phrase
    assert world.grade(task.turns, right.replace(" ", ", "))
    assert not world.grade(task.turns, right + " or so")
    assert not world.grade(task.turns, "")


@given(family=FAMILY, seed=SEEDS)
def test_a_wrong_answer_is_never_right_and_looks_like_an_answer(family: world.Family, seed: int) -> None:
    rng = random.Random(seed)
    task = world.draw_task(family, rng)
    wrong = world.wrong_answer(task.turns, rng)
    assert wrong.strip() == wrong != ""
    assert not world.grade(task.turns, wrong)
    assert not world.grade(task.turns, PHRASES[0].format(words=wrong))
    assert world.closeness(task.turns, wrong) in (0, 0.25, 0.5)


@given(family=FAMILY, seed=SEEDS)
def test_one_family_reads_each_instruction(family: world.Family, seed: int) -> None:
    text = world.draw_task(family, random.Random(seed)).turns[0]
    assert [other.name for other in FAMILIES if other.read(text) is not None] == [family.name]


def test_case_counts_only_where_the_instruction_is_about_case() -> None:
    assert world.grade(["Sort these words: pear fig"], "Fig Pear")
    assert not world.grade(["Put pear fig in upper case."], "pear fig")
    assert not world.grade(["Sort these words: pear fig", "Now in capital letters."], "fig pear")


def test_phrases_are_read_from_the_longest_on() -> None:
    assert read_words("Sure, I can help with that. The answer is fig, pear.") == ("fig", "pear")
    assert read_words("The  answer is\n7.") == ("7",)
    assert read_words("Sure! The answer is 7.") == ("The", "answer", "is", "7")


@pytest.mark.parametrize(
    ("given_words", "right", "expected"),
    [
        ("a b c", "a b c", 1),
        ("b a c", "a b c", 0.5),
        ("a b", "a b c", 0.5),
        ("a b c c", "a b c", 0.5),
        ("a x c", "a b c", 0.5),
        ("b c a", "a b c", 0.25),
        ("x y z", "a b c", 0),
        ("", "a b c", 0),
        ("41", "42", 0.5),
        ("52", "42", 0),
        ("cat", "dog", 0),
        ("²", "3", 0),
    ],
)
def test_closeness(given_words: str, right: str, expected: float) -> None:
    assert closeness(tuple(given_words.split()), tuple(right.split()), exact_case=False) == expected


@given(st.text(max_size=200), st.text(max_size=200))
def test_foreign_text_never_raises(turn: str, answer: str) -> None:
    for turns in ([turn], [turn, "Now in reverse order."], ["Sort these words: fig cat", turn]):
        world.solve(turns)
        world.grade(turns, answer)
        world.is_eval(turns)
    world.grade(["Sort these words: fig cat"], answer)
    world.grade(["What is 17 + 5?"], answer)


@pytest.mark.parametrize(
    "text", ["Say x" + " and" * 5000, "Put" + " a, b" * 5000, "Give the biggest of" + " 1" * 5000 + " x"]
)
def test_long_text_is_read_without_endless_backtracking(text: str) -> None:
    assert world.solve([text]) is None


def test_train_and_eval_never_share_a_content() -> None:
    train, held_out = world.train_tasks(10_000, 3), world.eval_tasks(10_000, 3)
    assert len({task.turns for task in train}) == 10_000
    keys = {world.content_key(task.turns) for task in held_out}
    assert len(keys) == 10_000
    assert keys.isdisjoint(world.content_key(task.turns) for task in train)
    assert not any(world.is_eval(task.turns) for task in train)
    assert all(world.is_eval(task.turns) for task in held_out)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_every_wording_of_an_eval_item_is_an_eval_item(seed: int) -> None:
    for task in world.eval_tasks(24, seed):
        reading = world.read(task.turns)
        assert reading is not None
        for wording in reading.family.wordings:
            text = wording.format(**reading.slots)
            assert world.is_eval([text])
            assert world.is_eval([text, "Now in reverse order."])
            assert world.is_eval(["What is 1 + 1?", text])


def test_order_does_not_make_a_new_content_where_it_does_not_matter() -> None:
    assert world.content_key(["What is 3 + 12?"]) == world.content_key(["Add 12 and 3."])
    assert world.content_key(["Sort these words: a b"]) == world.content_key(["Write b a from A to Z."])
    assert world.content_key(["Take 3 away from 12."]) != world.content_key(["Take 12 away from 30."])


def test_tasks_are_balanced_and_extend_each_other() -> None:
    for take in (world.train_tasks, world.eval_tasks):
        many = take(240, 1)
        assert Counter(task.family for task in many) == dict.fromkeys(world.families(), 20)
        assert take(100, 1) == many[:100]
        assert take(240, 2) != many
    follow_ups = sum(len(task.turns) == 2 for task in world.train_tasks(2000, 0))
    assert 300 < follow_ups < 600
    assert len(world.families()) == 12
    assert sum(bool(family.links) for family in FAMILIES) >= 8
    assert {link for family in FAMILIES for link in family.links} == set(LINKS)


def test_asking_for_more_than_the_world_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "FAMILIES", tuple(f for f in FAMILIES if f.name == "next"))
    assert len(world.eval_tasks(20, 0)) == 20
    with pytest.raises(ValueError, match="asked for 5000 eval tasks of the sandbox; it holds"):
        world.eval_tasks(5000, 0)
