"""The bugs of other people's pipelines, one named test each, against our own stages: random draws, limits of length.

Each docstring names the project that has the bug and what came out wrong there. Teachers are on 127.0.0.1.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from trap_shop import POOL, made, pool_or_judge, prefs, prompts_file, rows_of, warnings, work_at

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.shards import Shard
from zephyrctl.editions import load as editions
from zephyrctl.editions.resolve import resolve
from zephyrctl.events import Recorder
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.records import FeedbackRow, Message, PreferenceRow, SftRow
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.run import run as binarize
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.merge import merge
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft
from zephyrctl.testing.answers import conversation
from zephyrctl.testing.teacher import LoopbackTeacher


def feedback_file(path: Path, rows: list[FeedbackRow]) -> str:
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_num_proc_dependent_rng_of_binarize(tmp_path: Path) -> None:
    """Zephyr's script drew from one random.seed(42) inside datasets.map(num_proc=8): other processes, other pairs."""
    work = work_at(tmp_path)
    made(gen_prefs(GenPrefsConfig(teacher="sandbox", rows=60), work))
    feedback = rows_of(work.store.resolve("feedback"), FeedbackRow)

    def pairs(**settings: Any) -> dict[str, tuple[str | None, str | None]]:
        body = {"ties": "keep", "max_dropped": 1.0, **settings}
        found = rows_of(made(binarize(BinarizeConfig.model_validate(body), work)), PreferenceRow)
        return {pair.prompt_id: (pair.chosen_id, pair.rejected_id) for pair in found}

    whole = pairs()
    shuffled = [row.model_copy(update={"completions": row.completions[::-1]}) for row in feedback]
    random.Random(3).shuffle(shuffled)
    assert pairs(feedback=feedback_file(tmp_path / "all.jsonl", shuffled)) == whole
    halves = [
        pairs(feedback=feedback_file(tmp_path / f"{n}.jsonl", shuffled[n::2]), out=f"half-{n}")
        for n in (0, 1)
    ]
    assert halves[0] | halves[1] == whole
    assert not halves[0].keys() & halves[1].keys()
    assert pairs(seed=43) != whole


def test_num_proc_dependent_rng_of_gen_prefs(tmp_path: Path) -> None:
    """UltraFeedback shuffled unseeded; others seed once for a run: each row then depends on all rows before it."""
    asked = [f"Add {n} and {n * n}." for n in range(2, 20)]
    config = {"teacher": "sandbox", "members": 3, "principles": "ultrafeedback"}

    def rows(store: str, prompts: list[str], **more: Any) -> dict[str, FeedbackRow]:
        path = prompts_file(tmp_path / f"{store}.jsonl", prompts)
        found = gen_prefs(
            GenPrefsConfig.model_validate({**config, "prompts": path, **more}), work_at(tmp_path / store)
        )
        return {row.prompt_id: row for row in rows_of(made(found), FeedbackRow)}

    whole = rows("whole", asked)
    assert rows("turned", asked[::-1], concurrency=1) == whole
    some = rows("some", asked[5:9])
    assert some == {key: row for key, row in whole.items() if key in some}
    assert len(some) == 4
    assert rows("other", asked, seed=1) != whole


def test_num_proc_dependent_rng_of_shards(tmp_path: Path) -> None:
    """Zephyr's script again: three processes make what one makes, draws and orders included."""
    config = GenPrefsConfig(teacher="sandbox", members=3, rows=12)
    one = made(gen_prefs(config, work_at(tmp_path / "one")))
    store, parts = Store.open(tmp_path / "cut" / "artifacts"), []
    for index in (1, 2, 3):
        shard = Shard(index, 3)
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        parts.append(made(gen_prefs(config.model_copy(update={"shard": str(shard)}), Work(own, Recorder()))))
    assert made(merge(parts, Work(store, Recorder()))).digest == one.digest


DRAWS = """
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.stages.binarize.candidates import Asked, Candidate
from zephyrctl.stages.binarize.select import Policy, select
from zephyrctl.stages.gen_prefs.orders import latin_order
for n in range(20):
    rows = [Candidate(f"c{i}", "m", f"text {i}", 5.0 + (i < 2), None, ()) for i in range(5)]
    print(select(Asked(f"p{n}", "", "q", rows), Policy()).pairs, latin_order(["a", "b", "c"], ASPECTS, 1, f"p{n}"))
"""


def test_num_proc_dependent_rng_of_hashes() -> None:
    """What is drawn by Python's own hash() differs from process to process; nothing here is."""
    told = {
        subprocess.run(
            [sys.executable, "-c", DRAWS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(told) == 1
    assert "Pairing" in told.pop()


LEAST = 1024
"""Tokens below which an answer of ordinary length is cut."""


@pytest.mark.parametrize("edition", [None, *(n for n in editions.names() if n != "sandbox")])
def test_default_max_new_tokens(edition: str | None) -> None:
    """distilabel: max_new_tokens=128 wherever nobody said otherwise, so answers ended in mid-sentence, unnoticed."""
    sft = resolve(GenSftConfig, {"teacher": "gpt-4"}, edition=edition).config
    prefs_config = resolve(GenPrefsConfig, {"teacher": "gpt-4"}, edition=edition).config
    assert min(sft.max_tokens, prefs_config.max_tokens, prefs_config.judge_max_tokens) >= LEAST


def test_default_max_new_tokens_on_the_wire(tmp_path: Path) -> None:
    """distilabel's default was the client's; what counts is the number that is sent."""
    path = prompts_file(tmp_path / "p.jsonl", ["prompt 0", "prompt 1"])
    with LoopbackTeacher(answer=pool_or_judge) as teacher:
        gen_prefs(prefs(path), work_at(tmp_path, teacher))
        gen_sft(GenSftConfig(teacher="box:pool-a", prompts=[path], max_usd=9), work_at(tmp_path, teacher))
        limits = [body.get("max_completion_tokens") or body["max_tokens"] for body in teacher.bodies]
    assert len(limits) >= 2 * (3 + 3 + 4) + 4
    assert min(limits) >= LEAST


def half_of(prompts: list[str], model: str) -> Any:
    """A script by which one model's answers to these prompts are cut off."""

    def script(times: int, body: Mapping[str, Any]) -> str:
        hit = body["model"] == model and conversation(body)[-1]["content"] in prompts
        return "length" if hit else "ok"

    return script


def loud_in(work: Work) -> bool:
    return any("cut off at max_tokens=1024" in text for text in warnings(work))


@pytest.mark.parametrize(("cut", "loud"), [(1, False), (2, True)])
def test_cut_off_completions_are_no_data_and_said_loudly(cut: int, loud: bool, tmp_path: Path) -> None:
    """distilabel kept texts whose finish_reason was `length`, and said nothing; here more than 1 % is a warning."""
    prompts = [f"prompt {n}" for n in range(50)]
    with LoopbackTeacher(script=half_of(prompts[:cut], "pool-a"), answer=pool_or_judge) as teacher:
        work = work_at(tmp_path, teacher)
        config = prefs(prompts_file(tmp_path / "p.jsonl", prompts), pool=POOL[:2], judge_mode="overall")
        feedback = made(gen_prefs(config, work))
    assert feedback.manifest.counts["completions"] == {
        "asked": 100, "kept": 100 - cut, "left_out": {"cut_off": cut},
    }  # fmt: skip
    assert len(rows_of(feedback, FeedbackRow)) == 50 - cut
    assert all(c.text.startswith("pool") for row in rows_of(feedback, FeedbackRow) for c in row.completions)
    assert loud_in(work) is loud


def test_cut_off_judgements_are_missing_and_said_loudly(tmp_path: Path) -> None:
    """UltraFeedback gave its judge 500 tokens for four answers; what was cut there became an empty list, unseen."""

    def script(times: int, body: Mapping[str, Any]) -> str:
        return "length" if body["model"] == "judge" else "ok"

    with LoopbackTeacher(script=script, answer=pool_or_judge) as teacher:
        work = work_at(tmp_path, teacher)
        path = prompts_file(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(10)])
        feedback = made(gen_prefs(prefs(path, pool=POOL[:2], judge_mode="overall", max_failures=1.0), work))
    counts = feedback.manifest.counts
    assert counts["judgements_cut_off"] == 20
    assert counts["ratings"]["rated"] == 0
    assert any("20 of 20 judgements were cut off at judge_max_tokens=1024" in text for text in warnings(work))


def test_cut_off_lists_of_tasks_are_said_loudly(tmp_path: Path) -> None:
    """self-instruct dropped a cut reply whole and counted nothing."""

    def script(times: int, body: Mapping[str, Any]) -> str:
        return "length" if "Think of" in conversation(body)[-1]["content"] else "ok"

    with LoopbackTeacher(script=script) as teacher:
        work = work_at(tmp_path, teacher)
        config = GenSftConfig(
            teacher="box:teacher", method="self-instruct", rows=5, max_usd=99, max_failures=1.0, novelty=1.0
        )
        made(gen_sft(config, work))
    assert any("lists of tasks were cut off" in text for text in warnings(work))


@pytest.mark.parametrize(("cut", "loud"), [(1, False), (2, True)])
def test_cut_off_dialogues_are_no_data_and_said_loudly(cut: int, loud: bool, tmp_path: Path) -> None:
    """distilabel again: half an answer was imitated like a whole one."""
    prompts = [f"prompt {n}" for n in range(100)]
    path = prompts_file(tmp_path / "p.jsonl", prompts)
    with LoopbackTeacher(script=half_of(prompts[:cut], "pool-a"), answer=pool_or_judge) as teacher:
        work = work_at(tmp_path, teacher)
        config = GenSftConfig(teacher="box:pool-a", prompts=[path], rounds=0, max_usd=99)
        sft = made(gen_sft(config, work))
    assert (sft.manifest.counts["kept"], sft.manifest.counts["dropped"]) == (100 - cut, {"cut_off": cut})
    assert len(rows_of(sft, SftRow)) == 100 - cut
    assert loud_in(work) is loud


def test_cut_off_answers_of_models_on_this_machine(tiny: Path) -> None:
    """distilabel's transformers and llama.cpp classes: the same default of 128, and no finish_reason at all."""
    provider = LocalProvider(ModelSource(tiny, "sha256:0", "tiny@v1", "sandbox", None))
    ask = Ask((Message(role="user", content="Hi."),), Sampling(max_tokens=2, temperature=0.0))
    (reply,) = map(provider.read, provider.send_batch([provider.wire(ask)]))
    assert (reply.outcome, reply.finish_reason) == ("length", "length")
