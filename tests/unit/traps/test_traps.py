"""The bugs of other people's pipelines, one named test each, against our own code: what texts and scores go through.

`test_traps_runs.py` and `test_traps_draws.py` have those that show only when a whole stage runs. Each docstring names
the project that has the bug and what came out wrong there.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.ultrafeedback import mend_overall, ultrafeedback_row
from zephyrctl.chat.render import render_dialogue
from zephyrctl.chat.tokenizer import load_tokenizer
from zephyrctl.editions.resolve import resolve
from zephyrctl.judges.ultrafeedback import ASPECTS, parse_aspect, parse_overall
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.providers.local import decoding
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.records import Message, PreferenceRow
from zephyrctl.stages.binarize.candidates import Asked, Candidate, asked_of
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.run import run as binarize
from zephyrctl.stages.binarize.select import Policy, normalised, select
from zephyrctl.stages.gen_prefs.orders import latin_order
from zephyrctl.stages.gen_sft.self_instruct.reading import split_tasks

ENDINGS = (
    "The cars",
    "a first class",
    "glass/",
    "1 < 2 > s",
    "what follows is </s",
    "</",
    "bus >",
    "yes  \n",
)
"""Texts that lose letters where a character set is taken off their end instead of the text `</s>`."""


def raw_row(*completions: dict[str, Any], instruction: str = "Name a thing.") -> dict[str, Any]:
    return {"source": "evol_instruct", "instruction": instruction, "completions": list(completions)}


def raw(model: str, ratings: list[str], overall: Any, text: str = "", **more: Any) -> dict[str, Any]:
    """A completion as UltraFeedback's files hold it."""
    annotations = {a: {"Rating": r, "Rationale": "so"} for a, r in zip(ASPECTS, ratings, strict=True)}
    response = text or f"{model} says so."
    return {
        "model": model, "response": response, "annotations": annotations, "overall_score": overall, **more
    }  # fmt: skip


def pairs_of(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[PreferenceRow]:
    """The pairs that `binarize` makes of rows of a file."""
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    body = {"feedback": str(path), "max_dropped": 1.0, **settings}
    found = binarize(BinarizeConfig.model_validate(body), Work(Store.open(tmp_path / "artifacts"))).artifact
    assert found is not None
    return [row for _, _, row in found.rows() if isinstance(row, PreferenceRow)]


class Playback:
    """A model that writes given tokens, whatever it reads."""

    def __init__(self, model: Any, scripts: list[list[int]], eos: int) -> None:
        self.device, self.config, self._eos = model.device, model.config, eos
        self._model, self._left = model, [[*script, eos] for script in scripts]

    def num_parameters(self) -> int:
        return 0

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        logits = self._model(**inputs).logits.clone()
        logits[:] = -1e9
        for place, script in enumerate(self._left):
            logits[place, -1, script[0]] = 0.0
        self._left = [script[1:] for script in self._left if script[0] != self._eos]
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("text", [*ENDINGS, "done</s>"])
def test_rstrip_charset_in_raw_ultrafeedback(text: str) -> None:
    """UltraFeedback's main_vllm.py: `.rstrip("</s>")` takes off any of those letters: "The cars" became "The car"."""
    row = ultrafeedback_row(raw_row(raw("a", ["3"] * 4, 7, text), raw("b", ["2"] * 4, 5)))
    assert row.completions[0].text == text


def test_rstrip_charset_in_models_on_this_machine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """UltraFeedback's main_vllm.py: the answers of local models alone lost letters, so the judge saw it by model."""
    loaded = decoding.load_model(tiny)
    tokens = [loaded.tokenizer.encode(text, add_special_tokens=False) for text in ENDINGS]
    played = replace(loaded, model=Playback(loaded.model, tokens, loaded.tokenizer.eos_token_id))
    provider = LocalProvider(ModelSource(tiny, "sha256:0", "tiny@v1", "sandbox", None))
    monkeypatch.setattr(provider, "_loaded", played)
    asks = [
        Ask((Message(role="user", content=f"{n}?"),), Sampling(max_tokens=99)) for n in range(len(ENDINGS))
    ]
    replies = [provider.read(reply) for reply in provider.send_batch([provider.wire(ask) for ask in asks])]
    assert [reply.text for reply in replies] == list(ENDINGS)
    assert {reply.outcome for reply in replies} == {"text"}


@pytest.mark.parametrize("text", ENDINGS)
def test_rstrip_charset_in_what_is_trained(tiny: Path, text: str) -> None:
    """UltraFeedback's main_vllm.py, one step further: what a dialogue trains is the answer's every letter and one
    closing token."""
    tokenizer = load_tokenizer(tiny)
    said = [Message(role="user", content="Say."), Message(role="assistant", content=text)]
    rendered = render_dialogue(tokenizer, said)
    learned = [i for i, bears in zip(rendered.input_ids, rendered.loss_mask, strict=True) if bears]
    assert tokenizer.decode(learned, clean_up_tokenization_spaces=False) == text + tokenizer.eos_token


def test_capitalize_in_lists_of_tasks() -> None:
    """Self-Instruct's bootstrap_instructions.py: `.capitalize()` made "a Python program for NASA" lower case."""
    tasks = [
        "Explain what NASA does in Python terms.",
        "iPhone or Android: say why.",
        "Übersetze »McDonald's«.",
    ]
    listed = "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 9))
    assert split_tasks(listed) == tasks


@given(ratings=st.lists(st.sampled_from(["1", "2", "N/A"]), min_size=4, max_size=4), as_text=st.booleans())
def test_ten_times_score_in_raw_ultrafeedback(ratings: list[str], as_text: bool) -> None:
    """UltraFeedback#8: `10*score` for scores up to 1: a completion rated 1 by all was published with a 10."""
    ten = "10" if as_text else 10
    found = ultrafeedback_row(raw_row(raw("bad", ratings, ten), raw("b", ["4"] * 4, 7))).completions[0]
    assert found.overall == (None if ratings == ["N/A"] * 4 else 1.0)
    assert [r.reason for r in found.ratings if r.aspect == "overall"] == [
        "10 or 1" if ratings == ["N/A"] * 4 else "10 for 1"
    ]


def test_ten_times_score_leaves_a_real_ten() -> None:
    """UltraFeedback#8, the other way round: its repair asked a model again; a ten that the aspects bear out stays."""
    row = ultrafeedback_row(raw_row(raw("a", ["5", "N/A", "5", "4"], 10.0), raw("b", ["4"] * 4, 9)))
    assert [c.overall for c in row.completions] == [10.0, 9.0]
    assert all(mend_overall(score, 1.0) == (score, None) for score in range(1, 10))


def test_ten_times_score_never_chooses(tmp_path: Path) -> None:
    """UltraFeedback#8: 2,628 completions had such a ten, and won their pairs."""
    rows = [
        raw_row(raw("bad", ["1", "1", "2", "1"], 10), raw("fair", ["3"] * 4, 6), instruction=f"Name {n}.")
        for n in range(8)
    ]
    pairs = pairs_of(tmp_path, rows)
    assert [(p.chosen_model, p.score_rejected) for p in pairs] == [("fair", 1.0)] * 8


def test_ten_times_score_in_our_own_parser() -> None:
    """UltraFeedback's annotate_critique.py: `score if score > 1 else 10*score`."""
    for written, value in (("1", 1.0), ("10", 10.0), ("1/10", 1.0), ("10/10", 10.0)):
        assert parse_overall(f"So so.\n\nOverall score: {written}").value == value
    assert parse_overall('{"critique": "bad", "score": 1}').value == 1.0
    assert parse_overall("Overall score: 0.1").value is None


def test_not_applicable_as_minus_one() -> None:
    """Tulu 3's parse_preferences.py: N/A became -1 and went into the mean, so honest texts lost to others."""
    parsed = parse_aspect("Text 1\nRating: N/A\n\nText 2\nRating: 1", 2, "honesty")
    assert [(p.value, p.reason) for p in parsed] == [(None, "n/a"), (1.0, None)]
    row = ultrafeedback_row(raw_row(raw("a", ["4", "N/A", "4", "4"], 7), raw("b", ["4", "3", "4", "4"], 7)))
    outcome = select(asked_of(row), Policy(score="mean"))
    assert [(p.chosen, p.high, p.low) for p in outcome.pairs] == [(0, 4.0, 3.75)]
    assert outcome.missing == {"not applicable": 1}


@pytest.mark.parametrize("section", ["Rating:", "Rating: good", "rated 4", "", "Rating: 4 or 5", "Rating: 6"])
def test_unparsable_as_one(section: str) -> None:
    """Tulu 3's ultrafeedback_template.py: a section that does not match the pattern got Rating "1"."""
    first, second = parse_aspect(f"Text 1\n{section}\n\nText 2\nRating: 2", 2, "helpfulness")
    assert (first.value, second.value) == (None, 2.0)
    assert first.failed
    assert first.reason


def test_unparsable_as_one_in_raw_ultrafeedback() -> None:
    """Tulu 3, with UltraFeedback's own gaps: an annotation left empty is missing, whatever the others are."""
    broken = raw("a", ["5"] * 4, "broken")
    broken["annotations"] = {"instruction_following": [], "honesty": None, "helpfulness": {"Rating": "fine"}}
    found = ultrafeedback_row(raw_row(broken, raw("b", ["2"] * 4, 3))).completions[0]
    assert found.overall is None
    assert [r.value for r in found.ratings] == [None] * 4
    assert (
        select(asked_of(ultrafeedback_row(raw_row(broken, raw("b", ["2"] * 4, 3)))), Policy()).reason
        == "unscored"
    )


@pytest.mark.parametrize(
    "preamble", ["Here are my ratings:\n\n", "\n\n", "Sure!\n\nText: below\n\n", "5\n\n"]
)
def test_preamble_shifts_list(preamble: str) -> None:
    """distilabel 1.5.3: "Here are my ratings:" and a blank line parsed to [None, 5, 1] for two texts."""
    reply = preamble + "Text 1\nRating: 5\nRationale: a\n\nText 2\nRating: 1\nRationale: b"
    assert [p.value for p in parse_aspect(reply, 2, "helpfulness")] == [5.0, 1.0]


def test_blank_line_in_rationale() -> None:
    """distilabel 1.5.3: a blank line inside a rationale parsed to [5, None, 1] for two texts."""
    reply = "Text 1\nRating: 5\nRationale: good.\n\nVery good.\n\nText 2\nRating: 1\nRationale: bad"
    first, second = parse_aspect(reply, 2, "helpfulness")
    assert (first.value, second.value) == (5.0, 1.0)
    assert first.rationale == "good.\n\nVery good."


def test_more_ratings_than_texts() -> None:
    """distilabel 1.5.3: nothing compared the number of ratings with the number of texts, in JSON neither."""
    extra = {f"text_{n}": {"rating": n} for n in (1, 2, 3)}
    assert [p.value for p in parse_aspect(json.dumps(extra), 2, "helpfulness")] == [None, None]
    assert [p.value for p in parse_aspect('{"ratings": [1, 3, 1]}', 2, "helpfulness")] == [None, None]


def test_one_order_for_all_aspects() -> None:
    """Tulu 3 drew one order for all four aspects, distilabel none: who is shown first gains in every aspect."""
    ids = ["a", "b", "c", "d"]
    for prompt in ("x", "y", "z"):
        orders = latin_order(ids, ASPECTS, 42, prompt)
        places = {(i, order.index(i)) for order in orders.values() for i in ids}
        assert len(places) == 16


TEXTS = ("same", " same\n", "sa\u0301me", "s\u00e1me", "other", "")
POLICIES = [
    Policy(
        "overall", rule, ties, 1.0 if ties == "margin" else None, 3, 0.5 if rule == "quantile" else None, best
    )
    for rule in ("random", "worst", "nearest", "quantile", "all-pairs")
    for ties in ("drop", "keep", "margin")
    for best in ("drawn", "first")
    if (rule, ties) != ("all-pairs", "keep")
]
POLICIES.append(resolve(BinarizeConfig, {}, edition="zephyr-h4").config.policy())


@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=2, max_size=5),
    score=st.sampled_from([1.0, 7.5]),
    policy=st.sampled_from(POLICIES),
)
def test_all_tie_row_chosen_is_rejected(texts: list[str], score: float, policy: Policy) -> None:
    """distilabel 1.5.3 and Zephyr's script: on a full tie chosen and rejected were one and the same completion."""
    everyone = [Candidate(str(n), f"m{n}", text, score, None, ()) for n, text in enumerate(texts)]
    outcome = select(Asked("id", "", "Say.", everyone), policy)
    assert outcome.pairs or outcome.reason
    assert not outcome.pairs or policy.ties == "keep"
    for pair in outcome.pairs:
        assert normalised(texts[pair.chosen]) != normalised(texts[pair.rejected])
        assert pair.tie


def test_all_tie_row_in_the_published_edition(tmp_path: Path) -> None:
    """Zephyr's script: four equal texts of equal score ran for three seconds, then gave chosen == rejected."""
    equal = [raw(f"m{n}", ["4"] * 4, 8, "The same.") for n in range(4)]
    tied = [raw(f"m{n}", ["4"] * 4, 8) for n in range(4)]
    settings = resolve(BinarizeConfig, {}, edition="zephyr-h4").config.model_dump(exclude_defaults=True)
    pairs = pairs_of(
        tmp_path, [raw_row(*equal, instruction="One."), raw_row(*tied, instruction="Two.")], **settings
    )
    assert [p.prompt[0].content for p in pairs] == ["Two."]
    assert pairs[0].tie
    assert pairs[0].chosen_id != pairs[0].rejected_id


@given(
    scores=st.lists(st.one_of(st.none(), st.integers(1, 10), st.just(float("nan"))), max_size=5),
    policy=st.sampled_from(POLICIES),
)
def test_a_missing_rating_raises(scores: list[float | None], policy: Policy) -> None:
    """distilabel's FormatTextGenerationDPO: a rating of None was a TypeError in max(); here it takes no part."""
    everyone = [Candidate(str(n), f"m{n}", f"text {n}", score, None, ()) for n, score in enumerate(scores)]
    outcome = select(Asked("id", "", "Say.", everyone), policy)
    scored = {n for n, score in enumerate(scores) if score is not None and not math.isnan(score)}
    assert all({p.chosen, p.rejected} <= scored for p in outcome.pairs)
    assert outcome.scored == len(scored)
