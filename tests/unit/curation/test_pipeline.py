"""Filters in the order asked for, counted so that the sums add up, each with its reason."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.curation.base import Dropped
from zephyrctl.curation.cutoff import sign_of_cut
from zephyrctl.curation.duplicates import NearDuplicates
from zephyrctl.curation.phrases import plain
from zephyrctl.curation.pipeline import FILTERS, Pipeline, make_pipeline
from zephyrctl.errors import MissingExtra, RefNotFound, UsageError
from zephyrctl.records import Message


class Words:
    """A token is a word; each turn has one more."""

    label = "words"
    digest = "sha256:words"

    def __call__(self, dialogue: Sequence[Message]) -> int:
        return sum(1 + len(m.content.split()) for m in dialogue)


def talk(*said: str, system: str = "") -> list[Message]:
    opening = [Message(role="system", content=system)] if system else []
    roles = ("user", "assistant")
    return opening + [Message(role=roles[n % 2], content=text) for n, text in enumerate(said)]  # type: ignore[arg-type]


def reason(pipeline: Pipeline, dialogue: list[Message]) -> str:
    found = pipeline.apply(dialogue)
    return found.reason if isinstance(found, Dropped) else ""


def test_an_empty_pipeline_passes_everything() -> None:
    pipeline = make_pipeline([])
    assert pipeline.apply(talk("a", "b")) == [talk("a", "b")]
    assert (pipeline.learns, pipeline.counts(), pipeline.inputs()) == (False, {}, [])


@pytest.mark.parametrize(
    "reply",
    [
        "I don't have emotions, but here it is.",
        "As an AI language model, I can tell you.",
        "Well, I’m just a language model.",
        "I do not have personal opinions.",
        "I   DON'T HAVE\nopinions on that.",
        "I was trained by OpenAI to do so.",
        "As an AI, I see it so.",
        "I'm an AI and cannot tell.",
        "I am just a program.",
        "I'm ChatGPT, a large language model.",
        "I possess no body, and I do not experience emotions.",
    ],
)
def test_talk_about_its_own_person_is_found(reply: str) -> None:
    assert reason(make_pipeline(["persona"]), talk("Hi", reply)) == "persona"
    assert reason(make_pipeline(["persona"]), talk(reply, "Fine.")) == ""  # what the user says is the user's


@pytest.mark.parametrize(
    "reply",
    [
        "People who do not have emotions are rare.",
        "The company that developed by OpenAI's methods grew.",
        "I don't have the recipe for this cake, but this one is near.",
        "A language model is a function of text.",
        "She said: 'I have opinions.'",
        "As an AI researcher, you should learn statistics.",
        "I'm an artificial intelligence student and apply for the job.",
        "Treat the spreadsheet as a computer program.",
        "I don't have personal time or money for this, says the character.",
        "I was trained by Google's best managers.",
        "I can't help but notice the view.",
        "It is illegal to drive without a licence in Germany.",
        "Dear team,\n\nI am sorry, but I cannot come to the party.",
        "I must decline your kind invitation. Best, Anna",
        "I am not comfortable in crowds, the diary begins.",
    ],
)
def test_other_talk_is_no_persona(reply: str) -> None:
    assert reason(make_pipeline(["persona", "refusals"]), talk("Hi", reply)) == ""


def test_refusals_are_looked_for_at_the_beginning_alone() -> None:
    pipeline = make_pipeline(["refusals"])
    assert reason(pipeline, talk("Hi", "I'm sorry, but I can't assist with that.")) == "refusals"
    assert reason(pipeline, talk("Hi", "I cannot fulfill this request.")) == "refusals"
    later = "Here is the letter you asked for. " * 8 + "I cannot assist with more."
    assert reason(pipeline, talk("Hi", later)) == ""


def test_the_lists_can_be_added_to(tmp_path: Path) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("# mine\nbeep boop (tm)\n")
    pipeline = make_pipeline([f"persona={own}"])
    assert reason(pipeline, talk("Hi", "Beep  boop (TM) says the robot")) == ""  # `)` ends no word
    own.write_text("beep boop\n")
    more = make_pipeline([f"persona={own}"])
    assert reason(more, talk("Hi", "Beep  Boop says the robot")) == "persona"
    assert reason(more, talk("Hi", "I don't have emotions.")) == "persona"
    assert (
        pipeline.inputs()[0].digest
        != more.inputs()[0].digest
        != make_pipeline(["persona"]).inputs()[0].digest
    )
    with pytest.raises(RefNotFound):
        make_pipeline(["persona=absent.txt"])


def test_contractions_are_written_out() -> None:
    assert (
        plain("I can’t, won't and don't; I'm sure they've gone")
        == "i cannot, will not and do not; i am sure they have gone"
    )


def test_exact_duplicates_keep_the_first() -> None:
    pipeline = make_pipeline(["exact-duplicates"])
    assert reason(pipeline, talk("a  b", "c")) == ""
    assert reason(pipeline, talk("a b ", "c")) == "exact_duplicate"
    assert reason(pipeline, talk("a b", "d")) == ""
    prompts = make_pipeline(["exact-duplicates=prompt"])
    assert [reason(prompts, talk("a", x)) for x in "cd"] == ["", "exact_duplicate"]


def test_near_duplicates_are_found_at_the_stated_threshold() -> None:
    base = " ".join(f"word{i}" for i in range(200))
    near = base.replace("word100", "other")
    far = " ".join(f"thing{i}" for i in range(200))
    pipeline = make_pipeline(["near-duplicates=0.8"])
    assert [reason(pipeline, talk(x, "yes")) for x in (base, near, far, base)] == [
        "",
        "near_duplicate",
        "",
        "near_duplicate",
    ]
    assert make_pipeline(["near-duplicates=0.8"]).counts()["near-duplicates=0.8"]["seen"] == 0


def test_few_near_duplicates_above_the_threshold_are_overlooked() -> None:
    rng = random.Random(5)
    found = 0
    for number in range(40):
        said = [f"word{rng.randrange(5000)}" for _ in range(300)]
        near = list(said)
        for place in (20, 90, 160, 230):  # 20 of 296 shingles differ: a similarity of 276/316 = 0.87
            near[place] = f"other{number}"
        pipeline = make_pipeline(["near-duplicates=0.8"])
        reason(pipeline, talk(" ".join(said), ""))
        found += reason(pipeline, talk(" ".join(near), "")) == "near_duplicate"
    assert found >= 38


def test_near_duplicates_in_scripts_without_spaces() -> None:
    base = "".join(chr(0x4E00 + 37 * n) for n in range(120))
    pipeline = make_pipeline(["near-duplicates=0.8"])
    assert reason(pipeline, talk(base, "好")) == ""
    assert reason(pipeline, talk(base[:60] + "的" + base[60:], "好")) == "near_duplicate"


def test_language() -> None:
    pipeline = make_pipeline(["language=en,de"])
    assert reason(pipeline, talk("Where is the next station, please?", "It is around the corner.")) == ""
    assert reason(pipeline, talk("Wo ist der nächste Bahnhof, bitte?", "Gleich um die Ecke, links.")) == ""
    assert (
        reason(pipeline, talk("Où est la gare la plus proche ?", "Elle est juste au coin de la rue."))
        == "language"
    )
    assert reason(pipeline, talk("ok?", "oui")) == ""  # too short to tell
    code = "```php\n$nachricht = 'Guten Tag, wie geht es Ihnen heute?';\necho $nachricht;\n```"
    assert reason(make_pipeline(["language=fr"]), talk("?", code)) == ""  # code tells nothing of the language
    assert (
        reason(
            pipeline,
            talk("请问最近的火车站在哪里，我应该怎么走才能到达那里呢？", "就在拐角处，往左走两百米就到了。"),
        )
        == "language"
    )
    with pytest.raises(UsageError, match="xx is no language code"):
        make_pipeline(["language=xx"])


def test_lengths_in_tokens_of_the_target_model() -> None:
    with pytest.raises(UsageError, match="whose tokens"):
        make_pipeline(["max-tokens=5"])
    pipeline = make_pipeline(["max-tokens=5", "min-tokens=4"], count=Words())
    assert [reason(pipeline, talk(*x)) for x in (("a b", "c"), ("a b", "c d"), ("a", ""))] == [
        "",
        "too_long",
        "too_short",
    ]


def test_long_dialogues_are_split_at_turn_pairs() -> None:
    pipeline = make_pipeline(["split-long=8"], count=Words())
    long = talk("q one", "a one", "q two", "a two", "q three", "a three", system="s")
    assert pipeline.apply(long) == [talk(f"q {n}", f"a {n}", system="s") for n in ("one", "two", "three")]
    assert pipeline.apply(talk("q", "a")) == [talk("q", "a")]
    assert reason(pipeline, talk("one two three four five six", "seven eight")) == "too_long"
    counts = pipeline.counts()["split-long=8"]
    assert (counts["split"], counts["pairs_left_out"]) == (1, 0)
    part = talk("q", "one two three four five six seven", "q", "a", system="s")
    assert pipeline.apply(part) == [talk("q", "a", system="s")]
    assert pipeline.counts()["split-long=8"]["pairs_left_out"] == 1


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8), st.integers(4, 30)
)
def test_parts_hold_whole_pairs_in_order_and_fit(pairs: list[tuple[int, int]], limit: int) -> None:
    said = [
        " ".join(f"{who}{n}" for _ in range(size))
        for n, pair in enumerate(pairs)
        for who, size in zip("ua", pair, strict=True)
    ]
    dialogue = talk(*said)
    found = make_pipeline([f"split-long={limit}"], count=Words()).apply(dialogue)
    fitting = [n for n, (u, a) in enumerate(pairs) if u + a + 2 <= limit]
    if isinstance(found, Dropped):
        assert not fitting
        return
    assert all(Words()(part) <= limit for part in found)
    assert all([m.role for m in part] == ["user", "assistant"] * (len(part) // 2) for part in found)
    kept = [m.content for part in found for m in part]
    assert kept == [text for n in fitting for text in said[2 * n : 2 * n + 2]]


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ("One is here. Two is there. Three is gone. And then the fourth of them went over to", True),
        ("This is a list of the", True),
        ("First do this,", True),
        ("```python\nprint(1)\n", True),
        (
            "One thing. Two things. Three things. The last sentence of this answer just stops in the midd",
            True,
        ),
        ("42", False),
        ("Paris", False),
        ("- milk\n- bread\n- eggs", False),
        ("```python\nprint(1)\n```", False),
        ("It is done.", False),
        ("Use it well!\n\nKind regards,\nAnna", False),
        ("Is that all? Yes. Good. (It is.)", False),
        ("这是一个完整的句子。", False),
        ("This is just how we do it", False),
        ("The best choice for all of us", False),
        ("Thank you for the help.\n\nBest regards,", False),
        ("SELECT name FROM people WHERE age > 3;", False),
        ("All of it is told at https://example.org/on/the/and/of", False),
        ("Call it like this: f(", True),
        ("Some text\n)", False),
        ("wait " + "." * 50_000 + "| x", False),
        ("import pygame\n\npygame.quit()", False),
        ("Join us. See what is new. Tell your friends. And come to the opening #crowdsourcing", False),
        ("Hello. This is it. See you.\n\nGhost Writer and Editor, Skinny Brown Dog Media", False),
    ],
)
def test_answers_that_were_cut_off(answer: str, cut: bool) -> None:
    assert bool(sign_of_cut(answer)) is cut


def test_counts_add_up_and_order_matters() -> None:
    pipeline = make_pipeline(["exact-duplicates", "persona", "cut-off"])
    rows = [
        talk("a", "b."),
        talk("a", "b."),
        talk("c", "I don't have feelings."),
        talk("d", "and the"),
        talk("e", "f,"),
    ]
    kept = [row for row in rows if not isinstance(pipeline.apply(row), Dropped)]
    counts = pipeline.counts()
    assert [counts[name]["seen"] for name in counts] == [5, 4, 3]
    for each in counts.values():
        assert each["seen"] == each["kept"] + sum(each["dropped"].values())
    assert len(kept) == counts["cut-off"]["kept"] == 2


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no filter 'personas'") as caught:
        make_pipeline(["personas"])
    assert caught.value.hint == "did you mean 'persona'?"
    for bad in ("near-duplicates", "near-duplicates=2", "max-tokens=x", "truecase=1", "exact-duplicates=x"):
        with pytest.raises(UsageError):
            make_pipeline([bad], count=Words())
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(MissingExtra, match="datasketch"):
        NearDuplicates(0.8)


def test_truecase_learns_first_and_every_filter_is_named() -> None:
    pipeline = make_pipeline(["truecase"])
    assert pipeline.learns
    pipeline.learn([talk("What is NASA doing?", "They say NASA flies.")] * 3)
    assert pipeline.apply(talk("Is nasa here?", "Yes.")) == [talk("Is NASA here?", "Yes.")]
    assert pipeline.counts()["truecase"]["changed"] == 1
    settings = {
        "near-duplicates": "=0.8", "language": "=en", "max-tokens": "=9", "min-tokens": "=1", "split-long": "=9",
    }  # fmt: skip
    made = make_pipeline([name + settings.get(name, "") for name in FILTERS], count=Words())
    assert len({item.digest for item in made.inputs()}) == len(FILTERS)
