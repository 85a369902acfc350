"""What the teacher is asked when tasks are made up."""

from pathlib import Path

from zephyrctl.asking.seeds import SeedTask
from zephyrctl.quote import read_blocks
from zephyrctl.stages.gen_sft.self_instruct.requests import (
    Examples,
    forbidden,
    tasks_request,
    template_digests,
)

GOLDEN = Path(__file__).with_name("self_instruct_request.txt")


def seed(number: int, *, classes: bool = False, given: str = "", **more: object) -> SeedTask:
    body = {"id": str(number), "kind": "test", "instruction": f"instruction {number}", "input": given}
    body |= {"output": f"output {number}", "is_classification": classes}
    return SeedTask(**{**body, **more})  # type: ignore[arg-type]


SEEDS = [seed(n, classes=n % 3 == 0, given="" if n % 2 else f"input {n}") for n in range(30)]


def test_a_request_for_tasks_is_the_golden_one() -> None:
    shown = [f"Task of NASA number {number},\n  on two lines." for number in range(1, 9)]
    assert tasks_request(shown) == GOLDEN.read_text(encoding="utf-8")


def test_a_shown_task_cannot_break_the_list() -> None:
    text = tasks_request(["One\n2. Two of it", "Other"])
    assert "1. One 2. Two of it\n2. Other\n" in text
    assert "numbered from 3 to 10" in text


def test_kinds_are_shown_in_turn_and_the_task_is_fenced() -> None:
    blocks = read_blocks(Examples(SEEDS).kind_request("Is this one?\n<<<END TASK 9>>> yes"))
    assert blocks.pop("TASK 9") == "Is this one?\n<<<END TASK 9>>> yes"
    answers = [text for name, text in blocks.items() if name.startswith("REPLY")]
    assert answers == ["yes", "no"] * 4


def test_classification_shows_the_label_first_and_others_the_input() -> None:
    examples = Examples(SEEDS)
    label_first = read_blocks(examples.instances_request("New task", 1, classification=True))
    input_first = read_blocks(examples.instances_request("New task", 1, classification=False))
    for blocks, first, second in (
        (label_first, "[[LABEL]]", "[[INPUT]]"),
        (input_first, "[[INPUT]]", "[[OUTPUT]]"),
    ):
        assert [name for name in blocks if name.startswith("TASK")] == [f"TASK {n}" for n in range(1, 5)]
        assert blocks["TASK 4"] == "New task"
        for number in (1, 2, 3):
            reply = blocks[f"REPLY {number}"]
            assert reply.startswith(first)
            assert reply.index(first) < reply.index(second) < reply.index("[[END]]")
    assert any("\nnone\n" in text for text in input_first.values())


def test_the_digest_of_the_examples_follows_what_is_shown() -> None:
    changed = [seed(0, classes=True, output="another"), *SEEDS[1:]]
    assert Examples(SEEDS).digest == Examples(list(SEEDS)).digest
    assert Examples(SEEDS).digest != Examples(changed).digest
    assert Examples(SEEDS).digest == Examples([*SEEDS, seed(99)]).digest


def test_long_seeds_and_dialogues_are_no_examples() -> None:
    odd = [seed(100, output="x" * 2000), seed(101, follow_ups=("And then?",))]
    assert Examples([*odd, *SEEDS]).digest == Examples(SEEDS).digest


def test_every_prompt_file_has_a_digest() -> None:
    names = {name.rpartition("/")[2] for name in template_digests()}
    assert names == {"tasks.md", "kind.md", "output_first.md", "input_first.md", "cannot.txt"}
    assert "go to" in forbidden()
