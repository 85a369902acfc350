"""Raters that are no language model: a verifier of the user's, and a reward model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.estimate import Range
from zephyrctl.asking.prompts import Seed, from_sandbox
from zephyrctl.asking.sketch import Sketch
from zephyrctl.errors import EnvironmentFault, RefNotFound, StageRejected, UsageError
from zephyrctl.events import Recorder
from zephyrctl.records import Completion, Message, PromptRow, completion_id, prompt_id
from zephyrctl.sandbox import world
from zephyrctl.stages.gen_prefs.answered import Answered
from zephyrctl.stages.gen_prefs.rating import Rater
from zephyrctl.stages.gen_prefs.reward_model import load_reward_model
from zephyrctl.stages.gen_prefs.scorers import open_scorer, read_score
from zephyrctl.stages.gen_prefs.tally import Tally

EXACT = '''"""Checks answers of the sandbox."""
from zephyrctl.sandbox import world


def right(prompt, completion):
    return world.grade([m["content"] for m in prompt if m["role"] == "user"], completion)
'''


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


def opened(work: Work, text: str) -> Rater:
    return open_scorer(text, work)


def answered(question: str, *texts: str) -> Answered:
    prompt = [Message(role="user", content=question)]
    seed = Seed("f:1", "train", PromptRow(prompt_id=prompt_id(prompt), prompt=prompt))
    kept = [
        Completion(completion_id=completion_id("m", i, t), model="m", text=t) for i, t in enumerate(texts)
    ]
    return Answered(seed, kept)


def nobody(asks: Sequence[object], task: str) -> list[Any]:
    raise AssertionError("a scorer asks nobody")


def scores(rater: Rater, *rows: Answered) -> tuple[list[list[float | None]], Tally]:
    tally = Tally()
    made = rater.rate(rows, nobody, tally)
    assert tally.ratings_asked == tally.rated + tally.not_applicable + tally.unscored.total()
    assert tally.judge_calls == 0
    return [[c.overall for c in row or ()] for row in made], tally


def verifier(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(body, encoding="utf-8")
    return "./mine.py:right"


# --- a function of the user's


def test_a_verifier_scores_sandbox_answers_exactly(work: Work, tmp_path: Path) -> None:
    rater = opened(work, verifier(tmp_path, EXACT))
    seeds = from_sandbox(40, 1).load(seed=1, test_fraction=0.1)
    rows = []
    for seed in seeds:
        turns = [m.content for m in seed.row.prompt]
        right = world.solve(turns)
        assert right is not None
        texts = [right, f"{right} and something else", f"The answer is {right}."]
        kept = [
            Completion(completion_id=completion_id("m", i, t), model="m", text=t) for i, t in enumerate(texts)
        ]
        rows.append(Answered(seed, kept))
    found, tally = scores(rater, *rows)
    assert found == [[1.0, 0.0, 1.0]] * 40
    assert (tally.ratings_asked, tally.rated) == (120, 120)
    assert (rater.label, rater.world, rater.providers(), rater.templates()) == (
        "mine.py:right",
        "real",
        [],
        {},
    )


def test_a_verifier_is_called_with_the_conversation_as_plain_messages(work: Work, tmp_path: Path) -> None:
    body = (
        "def right(prompt, completion):\n"
        "    prompt.append('mine')  # a copy of its own\n"
        "    return len(prompt) + (prompt[0] == {'role': 'user', 'content': 'q'}) + len(completion) / 10\n"
    )
    row = answered("q", "a", "bb")
    assert scores(opened(work, verifier(tmp_path, body)), row)[0] == [[3.1, 3.2]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("None", "not scored"),
        ("float('nan')", "not finite"),
        ("float('inf')", "not finite"),
        ("'4'", "not a number"),
        ("[1]", "not a number"),
    ],
)
def test_what_is_no_finite_number_is_missing_with_its_reason(
    work: Work, tmp_path: Path, value: str, reason: str
) -> None:
    rater = opened(work, verifier(tmp_path, f"def right(p, c):\n    return 2 if c == 'good' else {value}\n"))
    found, tally = scores(rater, answered("q", "good", "odd"))
    assert found == [[2.0, None]]
    assert (tally.rated, dict(tally.unscored)) == (1, {reason: 1})


def test_truth_values_and_whole_numbers_are_scores() -> None:
    assert [read_score(v).value for v in (True, False, 3, -0.5)] == [1.0, 0.0, 3.0, -0.5]


def test_a_whole_number_too_large_for_a_float_is_missing() -> None:
    assert read_score(10**400).reason == "not finite: inf"


def test_what_a_function_prints_never_reaches_stdout(
    work: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = (
        "import os, subprocess\n"
        "print('loading')\n\n"
        "def right(p, c):\n"
        "    print('scoring')\n"
        "    os.write(1, b'raw ')\n"
        "    subprocess.run(['echo', 'child'], check=True)\n"
        "    return 1\n"
    )
    found, _ = scores(opened(work, verifier(tmp_path, body)), answered("q", "a"))
    sys.stdout.write("the result\n")
    out, err = capfd.readouterr()
    assert found == [[1.0]]
    assert out == "the result\n"
    assert {"loading", "scoring", "child"} <= set(err.replace("raw ", "").split())


def test_a_function_that_wants_to_end_the_process_is_an_exception_like_others(
    work: Work, tmp_path: Path
) -> None:
    rater = opened(work, verifier(tmp_path, "import sys\n\ndef right(p, c):\n    sys.exit(0)\n"))
    with pytest.raises(StageRejected, match=r"mine\.py:4: SystemExit: 0"):
        scores(rater, answered("q", "a"))


def test_an_exception_in_the_function_names_file_line_and_prompt(work: Work, tmp_path: Path) -> None:
    rater = opened(work, verifier(tmp_path, "def right(p, c):\n    x = {}\n    return x['score']\n"))
    row = answered("q", "a", "b")
    with pytest.raises(StageRejected, match=r"mine\.py:3: KeyError: 'score'") as error:
        scores(rater, row)
    assert row.item.row.prompt_id[:12] in error.value.message
    assert "return None" in str(error.value.hint)


def test_a_function_of_another_form_is_refused_before_anything_is_paid(work: Work, tmp_path: Path) -> None:
    for body in ("def right(text):\n    return 1\n", "def right(p, c, *, strict):\n    return 1\n"):
        with pytest.raises(UsageError, match="cannot be called as fn"):
            opened(work, verifier(tmp_path, body))
    verifier(tmp_path, "def right(p, c, strict=False):\n    return 1\n")
    assert opened(work, "./mine.py:right").label == "mine.py:right"
    with pytest.raises(RefNotFound):
        opened(work, "./other.py:right")


def test_the_functions_file_is_in_the_step_key(work: Work, tmp_path: Path) -> None:
    one = opened(work, verifier(tmp_path, EXACT)).inputs()
    other = opened(work, verifier(tmp_path, EXACT + "\n# changed\n")).inputs()
    assert [(ref.role, ref.ref, ref.kind) for ref in one] == [("scorer", "mine.py:right", "function")]
    assert one[0].digest != other[0].digest


def test_a_scorer_adds_no_calls_to_the_estimate(work: Work, tmp_path: Path) -> None:
    sketch = Sketch()
    opened(work, verifier(tmp_path, EXACT)).draw(sketch, 100, Range(1, 1, 1), Range(1, 1, 1), 4)
    assert sketch.parts == []


def test_one_thread_at_a_time_calls_the_function(work: Work, tmp_path: Path) -> None:
    body = (
        "import time\n"
        "inside = []\n\n"
        "def right(p, c):\n"
        "    inside.append(1)\n"
        "    busy = len(inside)\n"
        "    time.sleep(0.002)\n"
        "    inside.pop()\n"
        "    return busy\n"
    )
    rater = opened(work, verifier(tmp_path, body))
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda i: scores(rater, answered(f"q{i}", "a", "b"))[0], range(12)))
    assert made == [[[1.0, 1.0]]] * 12


# --- a reward model


def classifier(folder: Path, tiny: Path, *, labels: int = 1, template: bool = True, **settings: Any) -> Path:
    """A tiny Mistral with a random score layer over one output."""
    import torch
    from transformers import MistralConfig, MistralForSequenceClassification

    torch.manual_seed(7)
    body = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    kept = {
        k: v
        for k, v in body.items()
        if k not in ("architectures", "dtype", "model_type", "transformers_version")
    }
    config = MistralConfig(**(kept | {"num_labels": labels} | settings))
    MistralForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", *(["chat_template.jinja"] if template else [])):
        shutil.copy(tiny / name, folder / name)
    return folder


@pytest.fixture
def reward(tmp_path: Path, tiny: Path) -> Path:
    return classifier(tmp_path / "reward", tiny)


def test_a_reward_model_gives_its_raw_value_for_the_rendered_dialogue(work: Work, reward: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rater = opened(work, "rm:./reward")
    row = answered("name a fruit", "fig", "a rather long answer about figs", "")
    [found], tally = scores(rater, row)
    model = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward)
    for value, completion in zip(found, row.kept, strict=True):
        turns = [
            {"role": "user", "content": "name a fruit"},
            {"role": "assistant", "content": completion.text},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        assert value == pytest.approx(float(model(input_ids=ids).logits.detach()[0, 0]), abs=1e-5)
    assert len(set(found)) == 3
    assert (rater.label, rater.world, tally.rated) == ("rm:./reward", "real", 3)
    [ref] = rater.inputs()
    assert (ref.role, ref.kind) == ("scorer", "model")
    rater.close()


def test_a_reward_models_scores_do_not_depend_on_what_else_is_rated(work: Work, reward: Path) -> None:
    rater = opened(work, "rm:./reward")
    rows = [answered(f"question {i}", "short", "an answer " * (i + 1), "x") for i in range(6)]
    together, _ = scores(rater, *rows)
    assert together == [scores(rater, row)[0][0] for row in reversed(rows)][::-1]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda row: scores(rater, row)[0][0], rows)) == together


def test_a_dialogue_longer_than_the_model_reads_is_missing_and_counted(
    work: Work, tmp_path: Path, tiny: Path
) -> None:
    classifier(tmp_path / "reward", tiny, max_position_embeddings=64)
    found, tally = scores(opened(work, "rm:./reward"), answered("q", "short", "much too long " * 40))
    assert found[0][0] is not None
    assert found[0][1] is None
    assert (tally.rated, dict(tally.unscored)) == (1, {"too long": 1})


def test_a_model_without_padding_reads_one_text_at_a_time_to_its_last_token(
    work: Work, tmp_path: Path, tiny: Path
) -> None:
    classifier(tmp_path / "padded", tiny)
    plain = shutil.copytree(tmp_path / "padded", tmp_path / "reward")
    body = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    (plain / "config.json").write_text(json.dumps(body | {"pad_token_id": None}), encoding="utf-8")
    assert not load_reward_model(plain).pads
    row = answered("q", "one", "one and two")
    unpadded, padded = (scores(opened(work, f"rm:./{name}"), row)[0][0] for name in ("reward", "padded"))
    assert unpadded == pytest.approx(padded, abs=1e-5)


def test_a_tokenizer_without_a_template_gets_prompt_and_answer_as_a_pair(
    work: Work, tmp_path: Path, tiny: Path
) -> None:
    heard = Recorder()
    work = Work(work.store, heard)
    folder = classifier(tmp_path / "reward", tiny, template=False)
    model = load_reward_model(folder)
    row = answered("q", "one", "two")
    ids = model.tokenizer("q", "one")["input_ids"]
    [found], _ = scores(opened(work, "rm:./reward"), row)
    assert found[0] == pytest.approx(model._values([list(ids)])[0], abs=1e-5)
    classifier(tmp_path / "with", tiny)
    opened(work, "rm:./with")
    assert len(heard.texts()) == 1
    assert heard.texts()[0].startswith("rm:./reward has no chat template")


def test_models_that_give_no_single_score_are_refused_before_they_are_loaded(
    work: Work, tmp_path: Path, tiny: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "language")
    with pytest.raises(UsageError, match=r"MistralForCausalLM; a reward model is") as error:
        opened(work, "rm:./language")
    assert "--scorer llm" in str(error.value.hint)
    classifier(tmp_path / "three", tiny, labels=3)
    with pytest.raises(UsageError, match="3 outputs"):
        opened(work, "rm:./three")
    with pytest.raises(RefNotFound):
        opened(work, "rm:./nowhere")


def test_weights_without_the_score_layer_are_refused_instead_of_drawn_at_random(
    work: Work, tmp_path: Path, tiny: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "reward"))
    body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    body |= {"architectures": ["MistralForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(EnvironmentFault, match=r"score\.weight: it would start at random"):
        scores(opened(work, "rm:./reward"), answered("q", "a", "b"))
