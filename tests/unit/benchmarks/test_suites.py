"""Reading evaluation suites: every known format, others by their columns, folders, and what cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zephyrctl.benchmarks.suites import Suite, load_suites
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError
from zephyrctl.events import Note, Recorder, Warning_


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(path: Path) -> Suite:
    (suite,) = load_suites([path])
    return suite


MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["Describe a port.", "Now in rhyme."]}
ALPACA = {"dataset": "koala", "instruction": "Name two rivers.", "output": "Po", "generator": "davinci"}
ARC = {
    "id": "Mercury_1", "question": "What do plants need?", "answerKey": "B",
    "choices": {"text": ["sand", "light"], "label": ["A", "B"]},
}  # fmt: skip
OLD_ARC = {
    "id": "Mercury_1", "answerKey": "B",
    "question": {
        "stem": "What do plants need?",
        "choices": [{"text": "sand", "label": "A"}, {"text": "light", "label": "B"}],
    },
}  # fmt: skip
HELLASWAG = {
    "ind": 4,
    "activity_label": "Rowing",
    "ctx_a": "A man rows.",
    "ctx_b": "he",
    "endings": ["sinks.", "lands."],
}
MMLU = {"question": "What is 2 + 2?", "subject": "maths", "choices": ["1", "2", "3", "4"], "answer": 3}
MC = {"question": "Do owls read?", "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]}}
OLD_MC = {"question": "Do owls read?", "mc1_targets": {"No": 1, "Yes": 0}}
GENERATION = {"question": "Do owls read?", "best_answer": "No", "correct_answers": ["No"]}


@pytest.mark.parametrize(
    ("row", "name", "item", "texts", "options"),
    [
        (MT_BENCH, "mt-bench", "81", ("Describe a port.", "Now in rhyme."), ()),
        (ALPACA, "alpaca-eval", "rows:1", ("Name two rivers.",), ()),
        (ARC, "arc", "Mercury_1", ("What do plants need?",), ("sand", "light")),
        (OLD_ARC, "arc", "Mercury_1", ("What do plants need?",), ("sand", "light")),
        (HELLASWAG, "hellaswag", "4", ("A man rows. he",), ("sinks.", "lands.")),
        ({**HELLASWAG, "ctx": "Whole."}, "hellaswag", "4", ("Whole.",), ("sinks.", "lands.")),
        (MMLU, "mmlu", "rows:1", ("What is 2 + 2?",), ("1", "2", "3", "4")),
        (MC, "truthfulqa", "rows:1", ("Do owls read?",), ("No", "Yes")),
        (OLD_MC, "truthfulqa", "rows:1", ("Do owls read?",), ("No", "Yes")),
        (GENERATION, "truthfulqa", "rows:1", ("Do owls read?",), ()),
        ({"question": "Why?", "answer": "So."}, "rows", "rows:1", ("Why?",), ()),
        ({"key": 1000, "prompt": "Say hello."}, "rows", "1000", ("Say hello.",), ()),
        ({"task_id": "Code/0", "prompt": "def f():"}, "rows", "Code/0", ("def f():",), ()),
        ({"text": "Some text."}, "rows", "rows:1", ("Some text.",), ()),
        ({"instruction": "Sort.", "input": "c a b", "output": "a b c"}, "rows", "rows:1", ("Sort.\n\nc a b",), ()),
        ({"turns": [{"content": "One."}, {"content": "Two."}]}, "rows", "rows:1", ("One.", "Two."), ()),
        (
            {"messages": [
                {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Hello."}, {"from": "human", "value": "Bye."},
            ]},
            "rows", "rows:1", ("Be kind.", "Hi.", "Bye."), (),
        ),
        ({"question_id": 1, "category": "generic", "turns": ["Only one."]}, "rows", "1", ("Only one.",), ()),
    ],
)  # fmt: skip
def test_formats(
    tmp_path: Path,
    row: dict[str, Any],
    name: str,
    item: str,
    texts: tuple[str, ...],
    options: tuple[str, ...],
) -> None:
    suite = only(jsonl(tmp_path / "rows.jsonl", row))
    (found,) = suite.items
    assert (suite.name, found.id, found.texts, found.options) == (name, item, texts, options)


def test_alpaca_eval_as_one_json_document(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps([ALPACA, {**ALPACA, "instruction": "Name two lakes."}], indent=1))
    assert [item.texts for item in only(path).items] == [("Name two rivers.",), ("Name two lakes.",)]


def test_parquet_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "ARC-Challenge" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([ARC]), path)
    suite = only(tmp_path)
    assert (suite.name, suite.items[0].options) == ("arc-challenge", ("sand", "light"))


@pytest.mark.parametrize("packed", [False, True])
def test_original_csv_files_of_mmlu_are_one_suite_and_what_is_for_training_is_left_out(
    tmp_path: Path, packed: bool
) -> None:
    for split, subject in (("test", "algebra"), ("test", "law"), ("auxiliary_train", "race")):
        text = f'"What, in {subject},\nis ""this""?",one,two,three,four,B\nNext?,1,2,3,4,D\n'
        path = tmp_path / "data" / split / f"{subject}_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        if packed:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
    recorder = Recorder()
    (suite,) = load_suites([tmp_path], recorder)
    assert suite.name == "mmlu"
    assert [item.id for item in suite.items] == [
        "algebra_test:1",
        "algebra_test:2",
        "law_test:1",
        "law_test:2",
    ]
    assert suite.items[0].texts == ('What, in algebra,\nis "this"?',)
    assert suite.items[0].options == ("one", "two", "three", "four")
    assert [type(event) for event in recorder.events] == [Note]
    assert "race_auxiliary_train" in recorder.texts()[0]


def test_truthfulqa_csv_has_a_header(tmp_path: Path) -> None:
    path = tmp_path / "TruthfulQA.csv"
    path.write_text("Type,Category,Question,Best Answer\nAdversarial,Myths,Do owls read?,No\n")
    suite = only(path)
    assert (suite.name, suite.items[0].texts) == ("truthfulqa", ("Do owls read?",))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("gsm8k/test.jsonl", "gsm8k"),
        ("gsm8k/main/test-00000-of-00001.jsonl", "gsm8k"),
        ("gsm8k.jsonl", "gsm8k"),
        ("my own (new)/questions.jsonl", "my-own-new"),
        ("suites/data/held out.jsonl", "held-out"),
    ],
)
def test_other_suites_are_named_after_their_place(tmp_path: Path, place: str, name: str) -> None:
    path = jsonl(tmp_path / place, {"prompt": "Hello."})
    assert only(path).name == name
    assert only(tmp_path).name == name


def test_items_of_files_with_equal_names_are_told_apart(tmp_path: Path) -> None:
    for subject in ("law", "algebra"):
        jsonl(tmp_path / subject / "test.jsonl", MMLU)
    assert [item.id for item in only(tmp_path).items] == ["algebra/test:1", "law/test:1"]


def test_training_splits_are_left_out_only_beside_a_held_out_one(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "quiz" / "train-00000.jsonl", {"prompt": "Train."})
    assert only(tmp_path).items[0].texts == ("Train.",)
    jsonl(tmp_path / "quiz" / "validation.jsonl", {"prompt": "Held out."})
    recorder = Recorder()
    (suite,) = load_suites([tmp_path], recorder)
    assert [item.texts for item in suite.items] == [("Held out.",)]
    assert str(train) in recorder.texts()[0]
    (named,) = load_suites([tmp_path, train])
    assert len(named.items) == 2


def test_the_digest_is_that_of_the_bytes_and_not_of_the_place(tmp_path: Path) -> None:
    one = only(jsonl(tmp_path / "a" / "quiz.jsonl", MT_BENCH))
    moved = only(jsonl(tmp_path / "b" / "quiz.jsonl", MT_BENCH))
    other = only(jsonl(tmp_path / "c" / "quiz.jsonl", {**MT_BENCH, "question_id": 82}))
    assert one.digest == moved.digest != other.digest
    assert one.digest.startswith("sha256:")
    both = load_suites([tmp_path / "a", tmp_path / "c"])
    assert [len(suite.items) for suite in both] == [2]
    assert both[0].digest == load_suites([tmp_path / "c", tmp_path / "a"])[0].digest


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "quiz.jsonl", MT_BENCH)
    assert len(load_suites([path, tmp_path, path])[0].items) == 1


def test_in_a_folder_what_cannot_be_read_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    jsonl(tmp_path / "question.jsonl", MT_BENCH)
    jsonl(tmp_path / "judgments.jsonl", *([{"score": 7}] * 30))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 99)[:30])
    (tmp_path / "config.json").write_text('{\n  "a": 1\n}')
    (tmp_path / "odd.csv").write_bytes(b"question\n\xff\xfe\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "LICENSE.txt").write_text("All rights reserved.")
    jsonl(tmp_path / ".cache" / "hidden.jsonl", {"prompt": "Hidden."})
    recorder = Recorder()
    (suite,) = load_suites([tmp_path], recorder)
    assert suite.name == "mt-bench"
    (warning,) = recorder.events
    assert isinstance(warning, Warning_)
    assert "6 files" in warning.text
    assert "… and 1 more" in warning.text
    assert "config.json:1: not JSON" in warning.text
    assert "judgments.jsonl:1: no column of (score)" in warning.text


def test_bad_rows_are_counted_and_the_others_used(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"prompt": "One."}\n[1]\n{"prompt": " "}\n{"prompt": "Two."}\n')
    recorder = Recorder()
    (suite,) = load_suites([path], recorder)
    assert [item.id for item in suite.items] == ["quiz:1", "quiz:4"]
    assert "2 rows" in recorder.texts()[0]
    assert "quiz.jsonl:2" in recorder.texts()[0]


def test_csv_rows_of_another_length_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "quiz.csv"
    path.write_text("id,question\n1,Why?\n2,Who?,oops\n\n3,How?\n")
    recorder = Recorder()
    (suite,) = load_suites([path], recorder)
    assert [item.id for item in suite.items] == ["1", "3"]
    assert "quiz.csv:3: 3 cells" in recorder.texts()[0]


def test_a_named_file_that_is_no_suite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"scores\.jsonl:1: no column of \(score\)"):
        load_suites([jsonl(tmp_path / "scores.jsonl", {"score": 1})])
    (tmp_path / "a.bin").touch()
    with pytest.raises(UsageError, match="not a kind of file"):
        load_suites([tmp_path / "a.bin"])
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(IntegrityError):
        load_suites([tmp_path / "b.parquet"])
    (tmp_path / "c.csv.gz").write_bytes(b"no")
    with pytest.raises(IntegrityError):
        load_suites([tmp_path / "c.csv.gz"])


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match="nowhere"):
        load_suites([tmp_path / "nowhere"])


def test_the_published_mt_bench(parity_data: Path) -> None:
    suite = only(parity_data / "mt_bench" / "question.jsonl")
    assert (suite.name, len(suite.items)) == ("mt-bench", 80)
    assert [item.id for item in suite.items] == [str(n) for n in range(81, 161)]
    assert all(len(item.texts) == 2 for item in suite.items)


def test_the_published_alpaca_eval(parity_data: Path) -> None:
    suite = only(parity_data / "alpaca_eval" / "ae2.vicuna-7b-v1.5.annotations.json.gz")
    assert (suite.name, len(suite.items)) == ("alpaca-eval", 805)
    assert all(len(item.texts) == 1 for item in suite.items)
