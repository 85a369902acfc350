"""Lost capitals come back, right ones stay, and code is never touched."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.curation.truecase import FIRST, Truecase, _lines
from zephyrctl.records import Message

NAMES = [
    "Lisbon", "Anna", "Kowalski", "NASA", "Python", "Amazon", "Danube", "Friday", "October", "French", "Kenya",
    "Newton", "iPhone", "McDonald", "DNA", "Bluetooth", "Everest", "Mozart", "Chile", "Tokyo",
]  # fmt: skip
FRAMES = [
    "I met {a} in {b} last week.", "Why does {a} matter to people from {b}?", 
    "There is a long story about {a}, and it ends in {b}!",
    "You may ask {a} whether the march in {b} was cold.", "Nobody told us that {a} and {b} are related.",
    "Take the train, e.g. the one to {b}, and write to {a} soon.",
]  # fmt: skip
PLAIN = [
    "The bread is warm.",
    "We walked home slowly.",
    "Is it late? Then sleep.",
    "Nothing is lost, they said.",
]
CODE = "```python\nimport numpy as np\n# hello. we print nasa here\nprint('anna')\n```"


def rows(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        lines = [
            rng.choice([*FRAMES, *PLAIN]).format(a=rng.choice(NAMES), b=rng.choice(NAMES)) for _ in range(8)
        ]
        made.append(" ".join(lines[:4]) + "\n\n" + CODE + "\n\n" + " ".join(lines[4:]))
    return made


def learned(texts: Iterable[str]) -> Truecase:
    filter_ = Truecase()
    for text in texts:
        filter_.learn([Message(role="assistant", content=text)])
    return filter_


def words(text: str) -> list[tuple[int, int, str, str]]:
    return [(t.start, t.end, t.text, t.place) for line in _lines(text) for t in line]


def test_held_out_rows_get_their_capitals_back_and_keep_those_they_have() -> None:
    filter_ = learned(rows(300, seed=1))
    lost = back = changed = total = 0
    rng = random.Random(7)
    for text in rows(60, seed=2):
        tokens = words(text)
        total += len(tokens)
        same = filter_.restore(text)
        changed += sum(same[s:e] != word for s, e, word, _ in tokens)
        damaged = text
        hurt = [t for t in tokens if not t[2].islower() and rng.random() < 0.5]
        for start, end, word, _ in hurt:
            damaged = damaged[:start] + word.lower() + damaged[end:]
        mended = filter_.restore(damaged)
        lost += len(hurt)
        back += sum(mended[s:e] == word for s, e, word, _ in hurt)
        assert CODE in mended
    assert lost > 300
    assert back / lost >= 0.9
    assert changed / total <= 0.005


def test_what_capitalize_broke_is_restored() -> None:
    filter_ = learned(["Please write a Python program for NASA now.", "They like Python at NASA too."] * 3)
    assert filter_.restore("write a python program for nasa.") == "Write a Python program for NASA."
    assert filter_.restore("Hello. how are you?") == "Hello. How are you?"


@pytest.mark.parametrize(
    "text",
    [
        "Use e.g. the small one.",
        "See `nasa.anna` and nasa_python, or https://nasa.example/anna.",
        "def nasa(anna): return anna;",
        "    for (int i = 0; i < nasa; i++) { anna[i] = i; }",
        "The file is nasa.py and the option --python.",
        "$ nasa --anna | python",
        "$x = nasa + anna$ holds.",
        "<nasa class='anna'>",
        "Version nasa2 and @anna or #nasa.",
        "$ cat anna.txt\nhello. anna met mozart",
        "anna@host:~$ sudo apt install python",
        "root# apt-get update\nreading from nasa... done",
        "pip install python\ngit checkout -b anna\ndocker run nasa",
        "import nasa\nfrom anna import mozart",
        "def anna(x):\n    # this is tokyo. it is\n    return mozart",
        "SELECT *\nFROM nasa\nORDER BY anna",
        '{\n  "name": "anna",\n  "city": "tokyo. chile"\n}',
        "name: anna\ncity: tokyo\nlikes:\n  - mozart\n  - nasa",
        "apiVersion: v1\nkind: nasa\nmetadata:\n  name: anna",
        '[anna]\nname = "tokyo"\ndescription = "i am nasa. yes"',
        "anna\ttokyo\nmozart\tnasa",
        "name,day,city\nx,anna,tokyo",
        "Traceback (most recent call last):\n  in anna\nnasa: tokyo",
    ],
)
def test_code_addresses_and_identifiers_are_left_alone(text: str) -> None:
    filter_ = learned(rows(100, seed=1))
    assert filter_.restore(text) == text


@pytest.mark.parametrize(
    "text",
    [
        'The march was cold. "Really?" she asked, and "Go!" he said.',
        "We walked home... and nobody told us why.",
        "Bread, milk, etc. are related.",
        "vidi i ragazzi di napoli con i cani",
    ],
)
def test_what_is_right_stays(text: str) -> None:
    filter_ = learned([*rows(100, seed=1), "Today I met them.", "Then I walked home and I met us."] * 3)
    assert filter_.restore(text)[1:] == text[1:]


@given(st.text(max_size=300))
def test_only_the_case_of_letters_ever_changes(text: str) -> None:
    mended = learned(rows(20, seed=1)).restore(text)
    assert mended.casefold() == text.casefold() or mended.lower() == text.lower()


@given(st.lists(st.sampled_from(["nasa = anna;", "return python", "anna.mozart()", "# tokyo"]), max_size=6))
def test_fenced_code_comes_back_byte_for_byte(lines: list[str]) -> None:
    code = "```\n" + "\n".join(lines) + "\n```"
    assert code in learned(rows(20, seed=1)).restore(f"hello there.\n\n{code}\n\nthe end.")


def test_real_answers(parity_data: Path) -> None:
    """Sentence beginnings, the fault that the published data had, on rows that were not learned from."""
    texts = []
    with gzip.open(
        parity_data / "mt_bench" / "mistral-orpo.answers.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        for line in file:
            texts += json.loads(line)["choices"][0]["turns"]
    name = "ae1.zephyr-7b-beta.annotations.json.gz"
    with gzip.open(parity_data / "alpaca_eval" / name, "rt", encoding="utf-8") as file:
        for row in json.load(file):
            texts += [row["output_1"], row["output_2"]]
    random.Random(0).shuffle(texts)
    held, seen = texts[: len(texts) // 10], texts[len(texts) // 10 :]
    filter_ = learned(seen)
    changed = total = lost = back = 0
    for text in held:
        tokens = words(text)
        total += len(tokens)
        same = filter_.restore(text)
        changed += sum(same[s:e] != word for s, e, word, _ in tokens)
        first = [t for t in tokens if t[3] == FIRST and re.fullmatch(r"[A-Z][a-z]+", t[2])]
        damaged = text
        for start, end, word, _ in first:
            damaged = damaged[:start] + word.lower() + damaged[end:]
        mended = filter_.restore(damaged)
        lost += len(first)
        back += sum(mended[s:e] == word for s, e, word, _ in first)
    assert lost > 500
    assert back / lost >= 0.9
    assert changed / total <= 0.005
