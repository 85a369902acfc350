"""gen-sft --method zephyr end to end: novelty, suites and filters, parts and concurrency, from an empty folder."""

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
from zephyrctl.asking.seeds import seed_tasks
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder, Table
from zephyrctl.records import Message, prompt_id
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.merge import merge
from zephyrctl.stages.gen_sft.run import run
from zephyrctl.testing.teacher import LoopbackTeacher

ASIDE = "As an AI, I don't have emotions or opinions. "


@pytest.fixture
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as server:
        yield server


def config(**settings: Any) -> GenSftConfig:
    return GenSftConfig.model_validate({"teacher": "sandbox", **settings})


def told(work: Work) -> Recorder:
    outside = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(outside, Recorder)
    return outside


def check_counts(artifact: Artifact, rounds: int, turned_away: int = 0) -> None:
    """seeds x (rounds + 1) = kept + dropped + not reached; rows = kept + further parts; rejects say the same."""
    counts = artifact.manifest.counts
    possible = counts["seeds"] * (rounds + 1)
    assert possible == counts["kept"] + sum(counts["dropped"].values()) + counts["not_reached"]
    assert len(rows_of(artifact)) == counts["kept"] + counts.get("further_parts", 0)
    reasons: dict[str, int] = {}
    for reject in artifact.rejects():
        reasons[reject["reason"]] = reasons.get(reject["reason"], 0) + 1
    assert reasons == counts["dropped"]
    by_round = extra(artifact, "rounds")
    assert sum(entry["kept"] for entry in by_round) == counts["kept"]
    tried = sum(entry["tried"] for entry in by_round)
    assert tried == possible - counts["not_reached"] - turned_away


def suite_file(folder: Path, *questions: str) -> str:
    path = folder / "held-out.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    return str(path)


def words(number: int) -> str:
    return f"Sort these words: pear{number} apple{number} fig{number}"


def prompts_file(folder: Path, count: int) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": words(n % (count - 4))}) + "\n" for n in range(count)))
    return str(path)


def test_novelty_is_decided_the_same_whatever_the_concurrency_and_more_seeds_contain_fewer(
    tmp_path: Path,
) -> None:
    setting = config(rows=60, rounds=2)
    one = made(run(setting.model_copy(update={"concurrency": 1}), work_at(tmp_path / "one")))
    many = made(run(setting, work_at(tmp_path / "many")))
    assert one.digest == many.digest
    check_counts(one, 2)
    assert one.manifest.counts["dropped"]["not_novel"] > 5
    fewer = made(run(setting.model_copy(update={"rows": 25}), work_at(tmp_path / "many")))
    ids = [row.row_id for row in rows_of(fewer)]
    assert [row.row_id for row in rows_of(many) if row.row_id in set(ids)] == ids
    off = made(run(setting.model_copy(update={"novelty": 1.0}), work_at(tmp_path / "many")))
    assert "not_novel" not in off.manifest.counts["dropped"]


def test_a_second_run_sends_nothing(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    setting = config(teacher="box:teacher", prompts=[prompts_file(tmp_path, 12)], rounds=2)
    first = made(run(setting, work_at(tmp_path, teacher)))
    sent = teacher.requests
    assert run(setting, work_at(tmp_path, teacher)).already
    again = made(run(setting, work_at(tmp_path, teacher, again=True)))
    assert (again.digest, calls(again), teacher.requests) == (first.digest, 0, sent)


@pytest.mark.parametrize("contaminated", ["drop", "keep"])
def test_contaminated_seeds_are_turned_away_before_anything_is_paid(
    tmp_path: Path, teacher: LoopbackTeacher, contaminated: str
) -> None:
    suite = suite_file(tmp_path, words(2), words(5))
    setting = config(
        teacher="box:teacher",
        prompts=[prompts_file(tmp_path, 12)],
        rounds=0,
        suites=[suite],
        contaminated=contaminated,
    )
    artifact = made(run(setting, work_at(tmp_path, teacher)))
    away = 3 if contaminated == "drop" else 0  # one of the two stands there twice
    check_counts(artifact, 0, turned_away=away)
    counts, record = artifact.manifest.counts, extra(artifact, "decontamination")
    asked = {body["messages"][-1]["content"] for body in teacher.bodies}
    assert (words(2) in asked) == (contaminated == "keep")
    assert counts["dropped"].get("contaminated", 0) == away
    assert (record["hits"], record["dropped"]) == (3, away)
    assert [i.role for i in artifact.manifest.inputs if i.role == "suite"] == ["suite"]


def test_machine_made_instructions_are_compared_with_the_suites_too(tmp_path: Path) -> None:
    plain = made(run(config(rows=30, rounds=1), work_at(tmp_path / "plain")))
    victim = next(row for row in rows_of(plain) if row.round == 1)
    suite = suite_file(tmp_path, victim.messages[0].content)
    artifact = made(run(config(rows=30, rounds=1, suites=[suite]), work_at(tmp_path / "screened")))
    check_counts(artifact, 1)
    assert artifact.manifest.counts["dropped"]["contaminated"] == 1
    assert victim.row_id not in {row.row_id for row in rows_of(artifact)}
    assert victim.row_id in {row.row_id for row in rows_of(plain)}


def test_the_sandbox_is_compared_with_no_suite_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suites").mkdir()
    suite_file(tmp_path / "suites", words(1))
    monkeypatch.chdir(tmp_path)
    artifact = made(run(config(rows=6), work_at(tmp_path)))
    assert "decontamination" not in (artifact.manifest.model_extra or {})


def aside(body: Any) -> str:
    """The sandbox's answers, one in five of them with a remark on the speaker's own person; refinements as ever."""
    from zephyrctl.testing.answers import answer_text

    text = answer_text(body)
    asked = body["messages"][-1]["content"]
    return ASIDE + text if "<<<" not in asked and len(asked) % 5 == 0 else text


def test_filters_drop_dialogues_with_their_reason_and_are_counted(
    tmp_path: Path, teacher: LoopbackTeacher
) -> None:
    teacher.answer = aside
    setting = config(
        teacher="box:teacher", prompts=[prompts_file(tmp_path, 30)], rounds=1, filters=["persona"]
    )
    artifact = made(run(setting, work_at(tmp_path, teacher)))
    check_counts(artifact, 1)
    filtered = extra(artifact, "filters")["persona"]
    assert 0 < filtered["seen"] - filtered["kept"] < filtered["seen"]
    assert all(ASIDE not in m.content for row in rows_of(artifact) for m in row.messages)
    assert filtered["kept"] == artifact.manifest.counts["kept"]
    ids = {row.row_id for row in rows_of(artifact)}
    orphans = [row for row in rows_of(artifact) if row.parent is not None and row.parent not in ids]
    assert orphans


def test_a_filter_that_has_to_see_all_rows_first_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="truecase") as caught:
        run(config(rows=6, filters=["truecase"]), work_at(tmp_path))
    assert "import sft-data --as sft --filter truecase" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no filter"):
        run(config(rows=6, filters=["persoan"]), work_at(tmp_path))
    with pytest.raises(UsageError, match="tokens"):
        run(config(rows=6, filters=["max-tokens=20"]), work_at(tmp_path))


def test_three_parts_make_what_one_process_makes_with_novelty_suites_and_filters(
    tmp_path: Path, teacher: LoopbackTeacher
) -> None:
    teacher.answer = aside
    setting = config(
        teacher="box:teacher",
        prompts=[prompts_file(tmp_path, 40)],
        rounds=2,
        suites=[suite_file(tmp_path, words(0), words(7), words(8), words(30))],
        filters=["persona", "exact-duplicates=prompt"],
    )
    one = made(run(setting, work_at(tmp_path / "one", teacher)))
    check_counts(one, 2, turned_away=extra(one, "decontamination")["dropped"])
    dropped = one.manifest.counts["dropped"]
    assert {"contaminated", "not_novel", "duplicate"} <= dropped.keys()
    assert len(dropped) >= 4
    parts = []
    for index in range(1, 4):
        shard = Shard(index, 3)
        store = Store.open(tmp_path / "cut" / "artifacts")
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        work = Work(own, Recorder(), project=work_at(tmp_path, teacher).project)
        parts.append(made(run(setting.model_copy(update={"shard": str(shard)}), work)))
    work = work_at(tmp_path / "cut", teacher)
    both = made(merge(list(reversed(parts)), work))
    assert both.digest == one.digest
    assert both.manifest.counts == one.manifest.counts
    assert list(both.rejects()) == list(one.rejects())
    for name in ("rounds", "decontamination", "filters"):
        assert extra(both, name) == extra(one, name)
    assert run(setting, work).already
    # the merge is refused where the suite has another content than the parts saw
    suite_file(tmp_path, words(0))
    with pytest.raises(UsageError, match="another content of: "):
        merge(parts, work_at(tmp_path / "cut", teacher, again=True))


GARBAGE = ("empty", "length", "refusal", "filtered", "reasoning", "think_cut")


def garbled(times: int, body: Any) -> str:
    """Three replies in a hundred are none, decided by what was asked."""
    number = int(prompt_id([Message(role="user", content=json.dumps(body, sort_keys=True))])[:8], 16)
    return GARBAGE[number // 100 % len(GARBAGE)] if number % 100 < 3 else "ok"


def test_counts_add_up_with_garbage_among_the_replies(tmp_path: Path) -> None:
    with LoopbackTeacher(script=garbled) as teacher:
        prompts = prompts_file(tmp_path, 250)
        setting = config(teacher="box:teacher", prompts=[prompts], rounds=2, filters=["exact-duplicates"])
        one = made(run(setting, work_at(tmp_path / "one", teacher)))
        setting = setting.model_copy(update={"concurrency": 3})
        two = made(run(setting, work_at(tmp_path / "two", teacher)))
    assert one.digest == two.digest
    check_counts(one, 2)
    dropped = one.manifest.counts["dropped"]
    assert {"empty", "cut_off", "refusal", "not_novel", "duplicate"} <= dropped.keys()
    texts = [m.content for row in rows_of(one) for m in row.messages]
    assert all(text.strip() and "<think>" not in text for text in texts)


def test_from_an_empty_folder_the_shipped_seeds_are_used(tmp_path: Path, teacher: LoopbackTeacher) -> None:
    teacher.answer = lambda body: f"answer {body['seed']} to it"
    dry = work_at(tmp_path, teacher, dry_run=True)
    plan = run(config(teacher="box:teacher"), dry).plan
    assert teacher.requests == 0
    assert plan["training"]["optimiser_steps"] >= 1
    assert any("zephyrctl import hf://HuggingFaceH4/ultrachat_200k" in text for text in told(dry).texts())
    work = work_at(tmp_path, teacher)
    artifact = made(run(config(teacher="box:teacher", rows=12, novelty=1.0), work))
    check_counts(artifact, 1)
    assert [i.ref for i in artifact.manifest.inputs if i.role == "prompts"] == ["zephyrctl/seeds"]
    first = {row.messages[0].content for row in rows_of(artifact) if row.round == 0}
    assert first == {task.prompt for task in seed_tasks()[:12]}
    assert artifact.world == "real"
    assert [e.title for e in told(work).events if isinstance(e, Table)] == [
        "gen-sft plan",
        "what each round adds",
    ]


def test_flags_of_another_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads no topics"):
        run(config(topics="topics.txt"), work_at(tmp_path))
    with pytest.raises(UsageError, match="reads no prompts"):
        run(config(method="ultrachat", prompts=["x.jsonl"]), work_at(tmp_path))
