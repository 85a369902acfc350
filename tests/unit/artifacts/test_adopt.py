from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.folders import choose
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import (
    BadRow,
    IntegrityError,
    RefNotFound,
    StageRejected,
    UsageError,
    WrongKind,
    ZephyrError,
)
from zephyrctl.events import Recorder

if TYPE_CHECKING:
    from conftest import Make

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(name, rows or bytes)`: a file in the test's folder."""

    def put(name: str, content: list[Any] | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = (
            content if isinstance(content, bytes) else "".join(json.dumps(r) + "\n" for r in content).encode()
        )
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return put


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.jsonl.gz", "p.json", "a name with spaces.jsonl", "-p.jsonl", "ümläut.jsonl"]
)
def test_jsonl_in_all_its_dresses(store: Store, write: Write, name: str) -> None:
    path = write(name, [PAIR, {**PAIR, "prompt": "r"}])
    source = open_source(store, str(path), "prefs")
    found = list(source.rows())
    assert [where for where, _, _ in found] == [f"{path}:1", f"{path}:2"]
    assert [split for _, split, _ in found] == [None, None]
    assert source.shape.endswith("prompt, chosen, rejected")
    assert source.world == "real"
    assert source.input("data").ref == str(path)
    assert list(source.rows()) == found


def test_json_arrays_parquet_and_text(store: Store, write: Write, tmp_path: Path) -> None:
    array = write("p.json", json.dumps([PAIR, PAIR]).encode())
    assert [w for w, _, _ in open_source(store, str(array), "prefs").rows()] == [f"{array}:1", f"{array}:2"]
    table = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([PAIR, PAIR, PAIR]), table)
    assert [w for w, _, _ in open_source(store, str(table), "prefs").rows()][2] == f"{table}:3"
    text = write("p.txt", b"first\n\n  second\r\n")
    found = [(w, r.prompt[0].content) for w, _, r in open_source(store, str(text), "prompts").rows()]  # type: ignore[attr-defined]
    assert found == [(f"{text}:1", "first"), (f"{text}:3", "  second")]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(store: Store, write: Write) -> None:
    path = write(
        "p.jsonl", b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\n\n \n" + json.dumps(PAIR).encode()
    )
    assert [w for w, _, _ in open_source(store, str(path), "prefs").rows()] == [f"{path}:1", f"{path}:4"]


BAD_LINES = {
    b'{"prompt": "q", "chosen": "a", "rejected"': "not JSON",
    b"[1, 2]": "expected a JSON object, found list",
    b'"text"': "expected a JSON object",
    b'{"prompt": "q", "chosen": "a", "rejected": 7}': "`rejected` is a number",
    b'{"prompt": "q", "chosen": "a", "rejected": []}': "empty list",
    b'{"prompt": "q", "chosen": "a", "rejected": "b\\u0000"}': "NUL",
    b'{"prompt": "q", "chosen": "a", "rejected": "b\\ud800"}': "lone surrogate",
    b'{"prompt": "q", "chosen": "a", "rejected": "\xff"}': "not UTF-8",
    b'{"prompt": "q", "chosen": "a", "rejected": NaN}': "NaN",
    b'{"prompt": "q", "chosen": "a"}': "no column rejected",
    b"[" * 100_000: "not",
    b"\x00\x00": "not JSON",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_row_is_named_by_file_and_line(store: Store, write: Write, line: bytes) -> None:
    good = json.dumps(PAIR).encode()
    path = write("p.jsonl", b"\n".join([good, good, line, good]) + b"\n")
    with pytest.raises(BadRow) as caught:
        open_source(store, str(path), "prefs")
    assert caught.value.where == f"{path}:3"
    assert caught.value.message.startswith(f"{path}:3: ")
    assert BAD_LINES[line] in caught.value.message
    assert caught.value.exit_code == 5
    source = open_source(store, str(path), "prefs", on_bad_row="skip")
    for _ in range(2):
        assert [w for w, _, _ in source.rows()] == [f"{path}:{n}" for n in (1, 2, 4)]
        assert [(r["where"], r["reason"]) for r in source.rejects] == [(f"{path}:3", "bad row")]


def test_many_bad_rows_give_their_count_and_the_first_twenty(store: Store, write: Write) -> None:
    path = write("p.jsonl", [PAIR] + [{**PAIR, "rejected": 7}] * 30)
    with pytest.raises(BadRow) as caught:
        open_source(store, str(path), "prefs")
    lines = caught.value.message.splitlines()
    assert "30 of 31 rows" in lines[0]
    assert len(lines) == 22
    assert lines[1].strip().startswith(f"{path}:2: ")
    assert "10 more" in lines[-1]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_never_an_empty_success(store: Store, write: Write, content: bytes) -> None:
    with pytest.raises(BadRow, match=r"p.jsonl:1"):
        open_source(store, str(write("p.jsonl", content)), "prefs")
    with pytest.raises(ZephyrError):
        open_source(store, str(write("p.jsonl.gz", content)), "prefs", on_bad_row="skip")


def test_nothing_but_bad_rows_is_refused_even_when_they_are_skipped(store: Store, write: Write) -> None:
    path = write("p.jsonl", [{**PAIR, "rejected": 7}])
    with pytest.raises(StageRejected):
        open_source(store, str(path), "prefs", on_bad_row="skip")


def test_pairs_of_the_same_text_are_left_out_and_told(store: Store, write: Write) -> None:
    asked, said = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    twice = {"prompt": "q", "chosen": [asked, said], "rejected": [asked, said]}
    path = write("p.jsonl", [PAIR, {**PAIR, "rejected": "a"}, twice, PAIR])
    heard = Recorder()
    source = open_source(store, str(path), "prefs", emit=heard)
    for _ in range(2):
        assert [w for w, _, _ in source.rows()] == [f"{path}:1", f"{path}:4"]
        assert [(r["where"], r["reason"]) for r in source.rejects] == [
            (f"{path}:2", "identical"), (f"{path}:3", "identical"),
        ]  # fmt: skip
    assert any("2 rows say nothing and are left out (identical)" in text for text in heard.texts())
    with pytest.raises(StageRejected, match="1 identical left out"):
        open_source(store, str(write("q.jsonl", [{**PAIR, "rejected": "a"}])), "prefs")


@pytest.mark.parametrize(
    ("good", "idle", "reason"),
    [
        (
            {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
            {"instruction": "Draw.", "input": "", "output": ""},
            "no answer",
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
            {"conversations": []},
            "empty",
        ),
        ({"prompt": "q", "response": "a"}, {"prompt": "q", "response": " "}, "no answer"),
    ],
)
def test_public_rows_without_an_answer_are_left_out_and_told(
    store: Store, write: Write, good: dict[str, Any], idle: dict[str, Any], reason: str
) -> None:
    path, told = write("d.jsonl", [idle, good, idle]), Recorder()
    source = open_source(store, str(path), "sft", emit=told)
    assert len(list(source.rows())) == 1
    assert [row["reason"] for row in source.rejects] == [reason, reason]
    assert f"2 rows say nothing and are left out ({reason})" in told.texts()[0]


def test_columns_of_no_shape_are_not_a_matter_of_bad_rows(store: Store, write: Write) -> None:
    path = write("d.jsonl", [{"question_text": "q"}] * 2)
    with pytest.raises(BadRow, match="are no sft rows") as caught:
        open_source(store, str(path), "sft", on_bad_row="skip")
    assert "give the columns one of these names" in str(caught.value.hint)


def test_files_that_cannot_be_read_as_a_whole(store: Store, write: Write, tmp_path: Path) -> None:
    cut = write("p.jsonl.gz", [PAIR] * 100)
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match="gzip"):
        open_source(store, str(cut), "prefs", on_bad_row="skip")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(IntegrityError, match="Parquet"):
        open_source(store, str(tmp_path / "p.parquet"), "prefs")
    with pytest.raises(IntegrityError, match="UTF-16"):
        open_source(store, str(write("u.jsonl", json.dumps(PAIR).encode("utf-16"))), "prefs")
    with pytest.raises(IntegrityError, match="not a JSON document"):
        open_source(store, str(write("a.json", b'[{"prompt": 1},')), "prefs")


def test_a_file_that_changes_between_check_and_use_is_noticed(store: Store, write: Write) -> None:
    path = write("p.jsonl", [PAIR])
    source = open_source(store, str(path), "prefs")
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.raises(IntegrityError, match="changed"):
        list(source.rows())


def test_the_digest_is_that_of_the_bytes(store: Store, write: Write) -> None:
    one, two = write("a.jsonl", [PAIR]), write("b.jsonl", [PAIR])
    digest = open_source(store, str(one), "prefs").digest
    assert digest == open_source(store, str(two), "prefs").digest
    assert digest != open_source(store, str(write("b.jsonl", [PAIR, PAIR])), "prefs").digest


def test_duplicate_prompts_are_fine(store: Store, write: Write) -> None:
    rows = [PAIR, {**PAIR, "rejected": "c"}]
    found = [r.prompt_id for _, _, r in open_source(store, str(write("p.jsonl", rows)), "prefs").rows()]  # type: ignore[attr-defined]
    assert len(found) == 2
    assert len(set(found)) == 1


def test_stdin_is_read_as_jsonl(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(json.dumps(PAIR).encode() + b"\n" + json.dumps(PAIR).encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    source = open_source(store, "-", "prefs")
    assert [w for w, _, _ in source.rows()] == ["stdin:1", "stdin:2"]
    assert source.ref == "-"
    assert len(list(source.rows())) == 2


def test_hub_folders_keep_their_splits(store: Store, write: Write) -> None:
    write("hub/data/train_prefs-00000-of-00001.jsonl", [PAIR, PAIR])
    write("hub/data/test_prefs-00000-of-00001.jsonl", [PAIR])
    path = write("hub/data/train_sft-00000-of-00001.jsonl", [{"messages": []}])
    folder = str(path.parent.parent)
    found = list(open_source(store, folder, "prefs").rows())
    assert [split for _, split, _ in found] == ["train", "train", "test"]
    assert found[0][0] == f"{folder}/data/train_prefs-00000-of-00001.jsonl:1"
    plain = write("plain/train.jsonl", [PAIR]).parent
    write("plain/test.jsonl", [PAIR])
    assert [s for _, s, _ in open_source(store, str(plain), "prefs").rows()] == ["train", "test"]
    loose = write("loose/rows.jsonl", [PAIR]).parent
    assert [s for _, s, _ in open_source(store, str(loose), "prefs").rows()] == [None]


VARIANTS = [
    "train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl",
    "test_gen-00000-of-00001.jsonl", "train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "names", "taken", "rule"),
    [
        ("sft", VARIANTS, ["train_sft", "test_sft"], "2 of 6 files, *_sft"),
        ("prefs", VARIANTS, ["train_prefs", "test_prefs"], "2 of 6 files, *_prefs"),
        ("prompts", VARIANTS, ["train_gen", "test_gen"], "2 of 6 files, *_gen"),
        ("prompts", VARIANTS[:2], ["train_sft", "test_sft"], ""),
        ("feedback", ["flan.jsonl", "truthful_qa.jsonl"], ["flan.jsonl", "truthful_qa.jsonl"], ""),
        ("sft", ["train.jsonl", "validation.jsonl"], ["train.jsonl", "test"], "validation is the test split"),
        ("sft", ["train.jsonl", "test.jsonl", "val.jsonl"], ["train.jsonl", "test.jsonl"], "2 of 3 files"),
        ("sft", ["train.jsonl", "notes.jsonl"], ["train.jsonl"], "1 of 2 files"),
    ],
)
def test_the_files_of_a_folder_are_chosen_by_a_rule_that_is_stated(
    kind: str, names: list[str], taken: list[str], rule: str
) -> None:
    chosen = choose([f"data/{name}" for name in names] + ["README.md", "other/train.jsonl"], kind)
    assert chosen is not None
    assert chosen.rule == rule
    for (path, split), expected in zip(chosen.files, taken, strict=True):
        assert expected in path or split == expected


def test_folders_that_hold_no_rows_say_what_they_are(store: Store, write: Write, tmp_path: Path) -> None:
    with pytest.raises(WrongKind, match="model folder"):
        open_source(store, str(write("model/config.json", b"{}").parent), "prefs")
    with pytest.raises(UsageError, match="save_to_disk"):
        open_source(store, str(write("disk/state.json", b"{}").parent), "prefs")
    (tmp_path / "void").mkdir()
    with pytest.raises(UsageError, match="no data files"):
        open_source(store, str(tmp_path / "void"), "prefs")
    deep = write("deep/helpful/train.jsonl", [PAIR]).parent.parent
    with pytest.raises(UsageError, match="no data files") as caught:
        open_source(store, str(deep), "prefs")
    assert caught.value.hint == f"data lies in: {deep}/helpful"


def test_artifacts_are_sources_by_ref_and_by_folder(store: Store, make: Make, tmp_path: Path) -> None:
    artifact = make()
    by_ref = open_source(store, "prefs@v1", "prefs")
    assert [(w, s) for w, s, _ in by_ref.rows()][:1] == [("prefs@v1 row 1", "train")]
    assert (by_ref.digest, by_ref.artifact is not None) == (artifact.digest, True)
    assert open_source(store, str(artifact.path), "prefs").ref == "prefs@v1"
    elsewhere = Store.open(tmp_path / "elsewhere")
    foreign = open_source(elsewhere, str(artifact.path), "prefs")
    assert (foreign.ref, foreign.digest) == (str(artifact.path), artifact.digest)


@pytest.mark.parametrize("kind", ["sft", "prefs", "prompts"])
def test_prompts_come_from_sft_and_prefs_artifacts_too(store: Store, make: Make, kind: str) -> None:
    make("x", kind)
    found = list(open_source(store, "x", "prompts").rows())
    assert [s for _, s, _ in found] == ["train"] * 4 + ["test"] * 2
    assert found[0][2].prompt[0].content == "question 0"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("made", "wanted", "command"),
    [
        ("sft", "prefs", "zephyrctl gen-prefs --prompts x@v1"),
        ("prompts", "sft", "zephyrctl gen-sft --prompts x@v1"),
        ("prefs", "feedback", "zephyrctl gen-prefs"),
        ("prefs", "sft", "prefs-best"),
    ],
)
def test_the_wrong_kind_names_the_command_that_makes_the_right_one(
    store: Store, make: Make, made: str, wanted: str, command: str
) -> None:
    make("x", made)
    with pytest.raises(WrongKind, match=f"{wanted} expected, x@v1 is a {made} artifact") as caught:
        open_source(store, "x", wanted)
    assert command in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_a_feedback_artifact_given_for_prefs_names_binarize(store: Store, make_step: Any) -> None:
    from zephyrctl.records import FeedbackRow, Message

    row = FeedbackRow(prompt_id="1", prompt=[Message(role="user", content="q")], completions=[], judge="j")
    with make_step("feedback", "feedback").open() as staging:
        staging.write_rows("train", [row])
        staging.commit()
    with pytest.raises(WrongKind) as caught:
        open_source(store, "feedback", "prefs")
    assert caught.value.hint == "zephyrctl binarize --feedback feedback@v1"
    assert len(list(open_source(store, "feedback", "prompts").rows())) == 1


def test_texts_that_name_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("absent.jsonl", "./absent", "absent/x", "absent", "absent@v1"):
        with pytest.raises(RefNotFound):
            open_source(store, text, "prefs")
    with pytest.raises(RefNotFound) as missing:
        open_source(store, "HuggingFaceH4/ultrachat_200k", "sft")
    assert "hf://HuggingFaceH4/ultrachat_200k" in str(missing.value.hint)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as caught:
        open_source(store, "folder", "prefs")
    assert caught.value.hint == "type ./folder"
    for blank in ("", "  "):  # a shell variable that is not set; the folder here is not meant
        with pytest.raises(UsageError, match="the name is empty"):
            open_source(store, blank, "prefs")
    with pytest.raises(UsageError):
        open_source(store, "hf://x", "prefs")
    with pytest.raises(UsageError):
        open_source(store, "prefs", "model")


def test_real_pairs_open_as_pairs_as_dialogues_and_as_prompts(
    store: Store, parity_data: Path, write: Write
) -> None:
    path = parity_data / "ultrafeedback" / "pairs-200.jsonl.gz"
    pairs = list(open_source(store, str(path), "prefs").rows())
    assert len(pairs) == 200
    sft = open_source(store, str(path), "sft")
    assert "chosen side" in sft.shape
    dialogues = list(sft.rows())
    assert [r.messages[-1] for _, _, r in dialogues] == [r.chosen[-1] for _, _, r in pairs]  # type: ignore[attr-defined]
    assert len(list(open_source(store, str(path), "prompts").rows())) == 200
    lines = gzip.decompress(path.read_bytes()).splitlines()
    lines[122] = lines[122][:-30]
    broken = write("pairs.jsonl", b"\n".join(lines))
    for kind in ("prefs", "sft"):
        with pytest.raises(BadRow, match=r"pairs.jsonl:123: not JSON"):
            open_source(store, str(broken), kind)
