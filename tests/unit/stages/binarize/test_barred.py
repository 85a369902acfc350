"""Flagged ids: every way to write an entry, what is met and what is not, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zephyrctl.errors import BadRow, RefNotFound
from zephyrctl.stages.binarize.barred import Barred, read_flagged
from zephyrctl.stages.binarize.candidates import Asked, Candidate


def flags(folder: Path, text: str, name: str = "flags.jsonl") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


ENTRIES = [
    "p1",
    {"id": "p2"},
    {"prompt_id": "p3", "note": "why"},
    {"prompt_id": "p9", "completion_id": "c1"},
    {"prompt_id": "p9", "chosen_id": "c2", "rejected_id": "c3"},
    "c4+c5",
]


@pytest.mark.parametrize("form", ["lines", "list", "bare"])
def test_every_form_of_an_entry(tmp_path: Path, form: str) -> None:
    text = {
        "lines": "\n".join(json.dumps(e) for e in ENTRIES) + "\n\n",
        "list": "\ufeff" + json.dumps(ENTRIES, indent=1),
        "bare": "\r\n".join(e if isinstance(e, str) else json.dumps(e) for e in ENTRIES),
    }[form]
    ids, pairs, item = read_flagged(flags(tmp_path, text))
    assert ids == {"p1", "p2", "p3", "c1"}
    assert pairs == {frozenset({"c2", "c3"}), frozenset({"c4", "c5"})}
    assert (item.role, len(item.digest)) == ("drop", 71)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('"p1"\n{"note": 1}', ":2"),
        ("[1]", ":1"),
        ("{oops", ":1"),
        ('["a"', ":1"),
        ('p1\n{"id": " "}', ":2"),
        ("p1\nc1+", ":2"),
        ("+", ":1"),
    ],
)
def test_what_is_no_entry_is_named(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(BadRow) as caught:
        read_flagged(flags(tmp_path, text))
    assert caught.value.where.endswith(place)
    with pytest.raises(RefNotFound):
        read_flagged(str(tmp_path / "absent"))


def test_ids_are_met_whether_or_not_they_change_anything() -> None:
    barred = Barred(
        ids=frozenset({"p1", "c1", "x"}), pairs=frozenset({frozenset({"c1", "c2"}), frozenset({"c1", "y"})})
    )
    asked = Asked("p1", "", "q", [Candidate(n, "m", "t", None, None, []) for n in ("c1", "c2")])
    assert barred.unknown() == ["c1", "c1+c2", "c1+y", "p1", "x"]
    barred.meet(asked)
    assert barred.unknown() == ["c1+y", "x"]
