"""What replies of a bootstrap say: lists of tasks, kinds, instances, and what of them cannot be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.stages.gen_sft.self_instruct.reading import (
    Instance,
    read_instances,
    read_kind,
    split_tasks,
    unusable,
    word_count,
)


def reasons(instances: list[Instance]) -> list[str]:
    return [one.reason for one in instances]


def test_a_numbered_list_is_split_and_a_preamble_is_no_task() -> None:
    text = "Sure, here they are:\n\n9. Name  two\n   rivers.\n10) Add 3 and 4.\n\n  11. Last one here"
    assert split_tasks(text) == ["Name two rivers.", "Add 3 and 4.", "Last one here"]


def test_a_list_inside_a_task_stays_part_of_it() -> None:
    text = "9. Do these steps:\n1. wash\n2. dry\n10. Another task.\n"
    assert split_tasks(text) == ["Do these steps: 1. wash 2. dry", "Another task."]


@pytest.mark.parametrize("text", ["", "no list at all", "9.", "- one\n- two", "3.5 litres of milk"])
def test_what_is_no_numbered_list_holds_no_task(text: str) -> None:
    assert split_tasks(text) == []


@pytest.mark.parametrize("mark", ["**{}.**", "### {}.", "{})", "  {}."])
def test_marked_up_numbers_are_numbers(mark: str) -> None:
    text = "\n".join(f"{mark.format(number)} Name {number} rivers." for number in (9, 10, 11))
    assert split_tasks(text) == [f"Name {number} rivers." for number in (9, 10, 11)]


@given(
    st.lists(st.from_regex(r"[A-Za-z]{1,8}( [A-Za-z0-9]{1,8}){0,6}", fullmatch=True), min_size=1, max_size=12)
)
def test_any_list_comes_back_as_it_was_with_its_case(tasks: list[str]) -> None:
    """Trap `capitalize`: the original lower-cased whatever came after the first letter."""
    text = "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 9))
    assert split_tasks(text) == tasks


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("Name three rivers", "too_short"),
        ("Name three long rivers", None),
        ("word " * 150, None),
        ("word " * 151, "too_long"),
        ("Describe the Image shown below", "not_for_text"),
        ("Please go to the shop", "not_for_text"),
        ("Describe an imaginary creature briefly", None),
        ("Explain photosynthesis to a child", None),
        ("Write a program that sorts numbers", "program"),
        ("Write a Python program for NASA", "program"),
        ("Write a programme note for Elgar", None),
        ("Explain what a program is", None),
        ("- name three long rivers", "opening"),
        ("'Quoted' words begin this task", "opening"),
        ("5 apples cost 3 euros: how much is one?", None),
        ("¿Cuál es la capital de Perú?", None),
        ("Объясни, почему небо голубое", None),
        ("用三句话介绍长城的历史。", None),
        ("写诗", "too_short"),
    ],
)
def test_tasks_that_cannot_be_used_are_told_from_others(task: str, reason: str | None) -> None:
    found = unusable(task.strip())
    assert (found[0] if found else None) == reason


def test_two_characters_without_spaces_are_a_word() -> None:
    assert [word_count(text) for text in ("", "one two", "长城", "长城的", "say 长城 twice")] == [
        0,
        2,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Yes", "classification"),
        (" no.\n", "other"),
        ("**YES**", "classification"),
        ("Yes, since the labels are few", "classification"),
        ("No.\n\nIt asks for a poem.", "other"),
        ("No idea", "unclear"),
        ("Yes and no", "unclear"),
        ("yes no", "unclear"),
        ("", "unclear"),
        ("Nope", "unclear"),
    ],
)
def test_only_yes_or_no_is_a_kind(text: str, kind: str) -> None:
    assert read_kind(text) == kind


def read(text: str, *, classification: bool = False, cut: bool = False, most: int = 5) -> list[Instance]:
    return read_instances(text, classification=classification, cut=cut, most=most)


def test_an_instance_is_read_by_its_marks() -> None:
    text = "Here it is.\n[[INPUT]]\n3 + 4\n\nand more\n[[OUTPUT]]\nSeven: 7\n- done\n[[END]]\nHope it helps!"
    assert read(text) == [Instance("3 + 4\n\nand more", "Seven: 7\n- done")]


def test_marks_in_bold_are_marks() -> None:
    assert read("**[[INPUT]]**\na\n**[[OUTPUT]]**\nb\n**[[END]]**") == [Instance("a", "b")]


def test_a_classification_task_has_its_label_first() -> None:
    text = "[[LABEL]]\npositive\n[[INPUT]]\nGreat soup\n[[END]]\n[[LABEL]]\nnegative\n[[INPUT]]\nCold soup\n[[END]]"
    assert read(text, classification=True) == [
        Instance("Great soup", "positive"),
        Instance("Cold soup", "negative"),
    ]
    assert set(reasons(read(text, classification=False))) == {"unreadable"}


@pytest.mark.parametrize("word", ["none", "None.", "(none)", "<none>", "N/A"])
def test_the_word_for_no_input_is_no_input(word: str) -> None:
    assert read(f"[[INPUT]]\n{word}\n[[OUTPUT]]\nParis\n[[END]]") == [Instance("", "Paris")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[INPUT]]\na\n[[OUTPUT]]\n\n[[END]]", ["no_output"]),
        ("[[INPUT]]\nsame\n[[OUTPUT]]\nsame\n[[END]]", ["echo"]),
        ("[[INPUT]]\na\n[[OUTPUT]]\nas follows:\n[[END]]", ["colon"]),
        ("[[INPUT]]\nlist:\n[[OUTPUT]]\nb\n[[END]]", ["colon"]),
        ("[[OUTPUT]]\nb\n[[INPUT]]\na\n[[END]]", ["unreadable", "unreadable"]),
        ("[[INPUT]]\na\n[[END]]", ["unreadable"]),
        ("[[INPUT]]\na\n[[OUTPUT]]\nb\n[[OUTPUT]]\nc\n[[END]]", ["unreadable"]),
        ("no marks at all", []),
        ("[[INPUT]] a [[OUTPUT]] b", ["unreadable"]),
        ("so [[INPUT]] a\nso [[OUTPUT]] b", []),
        ("[[INPUT]] a\n[[OUTPUT]] b", [""]),
        ("[[INPUT]]\na\n[[OUTPUT]]\nb", [""]),
    ],
)
def test_instances_that_cannot_be_used_say_why(text: str, expected: list[str]) -> None:
    assert reasons(read(text)) == expected


def test_of_a_reply_that_was_cut_off_only_the_last_instance_is_lost() -> None:
    text = "[[INPUT]]\na\n[[OUTPUT]]\nb\n[[END]]\n[[INPUT]]\nc\n[[OUTPUT]]\nd"
    assert reasons(read(text, cut=True)) == ["", "cut_off"]
    assert reasons(read(text, cut=False)) == ["", ""]


def test_one_input_with_two_outputs_spoils_all_instances_of_the_task() -> None:
    one = "[[INPUT]]\na\n[[OUTPUT]]\nb\n[[END]]\n"
    other, third = one.replace("b", "c"), one.replace("\na\n", "\nx\n")
    assert reasons(read(one + other + third)) == ["conflict"] * 3
    assert reasons(read(one + one + third)) == ["", "duplicate", ""]


def test_no_more_instances_are_kept_than_wanted() -> None:
    text = "".join(f"[[INPUT]]\n{n}\n[[OUTPUT]]\nout {n}\n[[END]]\n" for n in range(4))
    assert reasons(read(text, most=2)) == ["", "", "surplus", "surplus"]
