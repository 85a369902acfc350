"""gen-sft --method ultrachat end to end: dialogues from topics, the same however the work is cut up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sft_shop import calls, extra, made, rows_of, work_at
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking import errand
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import RefNotFound, StageRejected
from zephyrctl.events import Recorder, Table
from zephyrctl.records import SftRow, prompt_id, split_of
from zephyrctl.sandbox import world
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.merge import merge
from zephyrctl.stages.gen_sft.run import run
from zephyrctl.testing.answers import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher


@pytest.fixture
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as server:
        yield server


def config(**settings: Any) -> GenSftConfig:
    return GenSftConfig.model_validate({"teacher": "sandbox", "method": "ultrachat", **settings})


def check_counts(artifact: Artifact) -> None:
    """dialogues = kept + dropped; rows = kept + further parts; rejects say the same."""
    counts = artifact.manifest.counts
    assert counts["dialogues"] == counts["kept"] + sum(counts["dropped"].values())
    assert len(rows_of(artifact)) == counts["kept"] + counts.get("further_parts", 0)
    reasons: dict[str, int] = {}
    for reject in artifact.rejects():
        reasons[reject["reason"]] = reasons.get(reject["reason"], 0) + 1
    assert reasons == counts["dropped"]
    assert sum(extra(artifact, "dialogues")["rounds"].values()) == counts["kept"]


def topics_file(folder: Path, *topics: str) -> str:
    path = folder / "topics.txt"
    path.write_text("# topics\n" + "".join(f"{topic}\n" for topic in topics))
    return str(path)


def test_the_sandbox_holds_dialogues_offline(tmp_path: Path) -> None:
    work = work_at(tmp_path)
    artifact = made(run(config(rows=30), work))
    assert (str(artifact.ref), artifact.kind, artifact.world) == ("sft-data@v1", "sft", "sandbox")
    check_counts(artifact)
    rows = [(split, row) for _, split, row in artifact.rows() if isinstance(row, SftRow)]
    for split, row in rows:
        roles = [m.role for m in row.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(roles) // 2 <= 7
        assert row.seed_id == row.prompt_id == prompt_id(row.messages[:1])
        assert split == split_of(row.prompt_id, 0.1)
        assert row.source.startswith("ultrachat/")
        asked = [m.content for m in row.messages if m.role == "user"]
        assert all(world.solve(asked[: n + 1]) is not None for n in range(len(asked)))
    assert len({len(row.messages) for _, row in rows}) > 3
    assert {i.role: i.ref for i in artifact.manifest.inputs}["topics"] == "zephyrctl/topics"
    assert sorted(artifact.manifest.templates) == [
        f"gen-sft/ultrachat/{name}.md" for name in ("ending", "questions", "subtopics", "user")
    ]
    outside = work.emit.outside  # type: ignore[attr-defined]
    tables = [event for event in outside.events if isinstance(event, Table)]
    assert [t.title for t in tables] == ["gen-sft plan", "dialogues by rounds of user and assistant"]
    assert [row[1] for row in tables[0].rows[:2]] == ["subtopics", "questions"]


def test_concurrency_and_chunks_change_nothing_and_more_rows_contain_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = config(rows=45, topics=topics_file(tmp_path, "Cooking", "Chess"))
    one = made(run(setting.model_copy(update={"concurrency": 1}), work_at(tmp_path / "one")))
    monkeypatch.setattr(errand, "CHUNK", 7)
    many = made(run(setting, work_at(tmp_path / "many")))
    assert (one.digest, calls(one)) == (many.digest, calls(many))
    fewer = made(run(setting.model_copy(update={"rows": 20}), work_at(tmp_path / "many")))
    assert calls(fewer) == 0
    ids = [row.row_id for row in rows_of(fewer)]
    assert [row.row_id for row in rows_of(many) if row.row_id in set(ids)] == ids
    other_order = setting.model_copy(update={"topics": topics_file(tmp_path, "Chess", "Cooking")})
    assert run(other_order, work_at(tmp_path / "many")).already


def test_a_second_run_sends_nothing(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    setting = config(teacher="box:teacher", rows=12)
    first = made(run(setting, work_at(tmp_path, teacher)))
    assert first.world == "real"
    check_counts(first)
    sent = teacher.requests
    assert run(setting, work_at(tmp_path, teacher)).already
    again = made(run(setting, work_at(tmp_path, teacher, again=True)))
    assert (again.digest, calls(again), teacher.requests) == (first.digest, 0, sent)
    plan = run(
        config(teacher="box:teacher", rows=12), work_at(tmp_path, teacher, again=True, dry_run=True)
    ).plan
    assert plan["ledger"]["rest"]["calls"]["likely"] == 0
    assert plan["training"]["rows"] == round(12 * 0.9)


def spoiled(body: Any) -> str:
    """The sandbox's replies, one answer in seven about the speaker's own person and one in eleven blank."""
    text = answer_text(body)
    said = body["messages"][-1]["content"]
    if "<<<" in said or (body["seed"] % 7 and body["seed"] % 11):
        return text
    return "As an AI, I don't have emotions or opinions. " + text if body["seed"] % 7 == 0 else " "


def test_three_parts_make_what_one_process_makes_with_suites_and_filters(
    tmp_path: Path, teacher: LoopbackTeacher
) -> None:
    teacher.answer = spoiled
    plain = made(
        run(config(teacher="box:teacher", rows=20, max_failures=1.0), work_at(tmp_path / "x", teacher))
    )
    suite = tmp_path / "suite.jsonl"
    held_out = [row.messages[0].content for row in rows_of(plain)[:3]]
    suite.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in held_out))
    setting = config(
        teacher="box:teacher",
        rows=60,
        topics=topics_file(tmp_path, "Cooking", "Chess", "Trains"),
        suites=[str(suite)],
        filters=["persona", "exact-duplicates=prompt", "split-long=24"],
        tokenizer="sandbox",
        max_failures=1.0,
    )
    one = made(run(setting, work_at(tmp_path / "one", teacher)))
    check_counts(one)
    assert {"empty", "duplicate"} & one.manifest.counts["dropped"].keys()
    assert one.manifest.counts["further_parts"] > 0
    assert len({row.row_id for row in rows_of(one)}) == len(rows_of(one))
    parts = []
    for index in range(1, 4):
        shard = Shard(index, 3)
        store = Store.open(tmp_path / "cut" / "artifacts")
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        work = Work(own, Recorder(), project=work_at(tmp_path, teacher).project)
        part = run(setting.model_copy(update={"shard": str(shard)}), work).artifact
        parts += [] if part is None else [part]
    assert len(parts) > 1
    work = work_at(tmp_path / "cut", teacher)
    both = made(merge(list(reversed(parts)), work))
    assert both.digest == one.digest
    assert both.manifest.counts == one.manifest.counts
    assert list(both.rejects()) == list(one.rejects())
    for name in ("dialogues", "decontamination", "filters"):
        assert extra(both, name) == extra(one, name)
    assert run(setting, work).already


def test_a_partial_artifact_holds_the_finished_dialogues(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    run(config(teacher="box:teacher", rows=10), work_at(tmp_path, teacher))
    sent = teacher.requests
    partial = made(
        run(config(teacher="box:teacher", rows=30, accept_partial=True), work_at(tmp_path, teacher))
    )
    counts = partial.manifest.counts
    assert (counts["partial"], counts["finished"], counts["of"]) == (True, 10, 30)
    assert counts["dropped"]["unpaid"] == 20
    assert teacher.requests == sent
    check_counts(partial)


def test_a_pilot_pays_for_a_few_dialogues_and_tells_what_all_would_cost(
    tmp_path: Path, teacher: LoopbackTeacher
) -> None:
    work = work_at(tmp_path, teacher)
    plan = run(config(teacher="box:teacher", rows=30, pilot=3), work).plan
    assert plan["forecast"]["rows"] == 30
    sent = teacher.requests
    assert sent > 0
    made(run(config(teacher="box:teacher", rows=3), work))
    assert teacher.requests == sent


def test_an_outcome_of_lists_that_cannot_be_read_is_rejected_or_counted(
    tmp_path: Path, teacher: LoopbackTeacher
) -> None:
    teacher.answer = lambda body: "I would rather talk about something else."
    with pytest.raises(StageRejected):
        run(config(teacher="box:teacher", rows=20), work_at(tmp_path, teacher))
    assert not work_at(tmp_path).store.names()


def test_lists_that_fall_short_are_told(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    def few(body: Any) -> str:
        text = answer_text(body)
        return "\n".join(text.splitlines()[:6]) if "numbered list of 10 lines" in str(body) else text

    teacher.answer = few
    work = work_at(tmp_path, teacher)
    artifact = made(run(config(teacher="box:teacher", rows=20), work))
    check_counts(artifact)
    short = artifact.manifest.counts["dropped"]["no_opening"]
    assert short >= 8
    outside = work.emit.outside  # type: ignore[attr-defined]
    assert any(f"{short} of 20 dialogues have no opening" in text for text in outside.texts())


def test_a_file_of_topics_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match=r"absent\.txt"):
        run(config(topics=str(tmp_path / "absent.txt")), work_at(tmp_path))
