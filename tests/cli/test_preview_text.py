"""A previewed row in a terminal."""

from __future__ import annotations

from zephyrctl.cli.preview import preview_rich, preview_text
from zephyrctl.events import Preview, Segment

ROW = Preview(
    "data.jsonl:3",
    (
        (
            "dialogue",
            (
                Segment("<|user|>\nhi", False, 4),
                Segment("yo\x1b[2J", True, 2),
                Segment("</s>", True, 1, special=True),
                Segment("\nrest", False, 3, cut=True),
            ),
        ),
    ),
)


def test_plain_text_brackets_what_bears_loss_and_what_is_cut() -> None:
    assert preview_text(ROW).split("\n") == [
        "data.jsonl:3",
        "  dialogue: 7 tokens, 3 bear loss, 3 cut away",
        "    <|user|>↵",
        "    hi[[yo␛[2J</s>]]{-↵",
        "    rest-}",
    ]


def test_colours_say_the_same_and_nothing_drives_the_terminal() -> None:
    made = preview_rich(ROW)
    assert "\x1b" not in made.plain
    styled = {made.plain[span.start : span.end]: str(span.style) for span in made.spans}
    assert styled["yo␛[2J"] == "bold green"
    assert styled["</s>"] == "bold green reverse"
    assert styled["↵\nrest"] == "dim strike"


def test_no_character_is_invisible() -> None:
    row = Preview("f:1", (("dialogue", (Segment("a\r\nb\u200bc\t\x7f\u202e", False, 7),)),))
    assert preview_text(row).split("\n")[2:] == ["    a␍↵", "    b⟨200B⟩c\t⟨007F⟩⟨202E⟩"]


def test_a_row_left_out_says_so() -> None:
    assert preview_text(Preview("f:1", (), "the template refuses")) == "f:1  LEFT OUT: the template refuses"
