"""A step cut into parts: each with its own ledger, put back together to the byte, replayed from the merged ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.behind import steps_behind
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import UsageError
from zephyrctl.events import Recorder
from zephyrctl.ledger.check import verify
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.transfer import merge as merge_ledger
from zephyrctl.stages.gen_prefs import merge as prefs_merge
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft import merge as sft_merge
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft

PARTS = 3


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def work_at(folder: Path) -> Work:
    return Work(Store.open(folder / "artifacts"), Recorder())


def in_parts(folder: Path, run: Callable[..., StepResult], config: Any) -> list[Artifact]:
    """The parts of a step, each made with a ledger of its own beside the store's."""
    store = Store.open(folder / "artifacts")
    parts = []
    for index in range(1, PARTS + 1):
        shard = Shard(index, PARTS)
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        parts.append(made(run(config.model_copy(update={"shard": str(shard)}), Work(own, Recorder()))))
    return parts


def calls(artifact: Artifact) -> int:
    return sum(teacher["calls"] for teacher in artifact.manifest.teachers)


def same_bytes(one: Artifact, two: Artifact) -> bool:
    names = [f.path for f in one.manifest.files if f.path.startswith(("data/", "rejects/"))]
    assert any(name.startswith("rejects/") for name in names)
    return all((one.path / name).read_bytes() == (two.path / name).read_bytes() for name in names)


CASES = {
    "gen-sft": (gen_sft, sft_merge.merge, GenSftConfig(teacher="sandbox", rows=60, rounds=2)),
    "gen-prefs": (gen_prefs, prefs_merge.merge, GenPrefsConfig(teacher="sandbox", rows=60)),
}


@pytest.mark.parametrize("stage", CASES)
def test_three_parts_make_what_one_process_makes(stage: str, tmp_path: Path) -> None:
    run, merge, config = CASES[stage]
    prompts = tmp_path / "prompts.jsonl"
    # equal prompts far from one another, and a row that cannot be used, in every part the same
    lines = [json.dumps({"prompt": f"Spell the word number {n % 50} backwards."}) for n in range(60)]
    prompts.write_text("\n".join([*lines[:30], '{"no": "prompt"}', *lines[30:]]) + "\n")
    config = config.model_copy(update={"prompts": [str(prompts)], "on_bad_row": "skip", "max_failures": 1.0})
    one = made(run(config, work_at(tmp_path / "one")))
    parts = in_parts(tmp_path / "cut", run, config)
    assert [part.ref.name for part in parts] == [f"{one.ref.name}.shard-{i}-of-3" for i in (1, 2, 3)]
    assert sum(part.manifest.counts["kept"] for part in parts) >= one.manifest.counts["kept"]

    work = work_at(tmp_path / "cut")
    both = made(merge(list(reversed(parts)), work))
    assert both.digest == one.digest
    assert same_bytes(one, both)
    assert both.manifest.counts == one.manifest.counts
    assert both.manifest.step_key == one.manifest.step_key
    assert calls(both) == sum(calls(part) for part in parts)
    # the unsharded command now finds its step done
    done = run(config, work)
    assert (done.ref, done.already) == (str(both.ref), True)

    assert not work.store.ledger_path.exists()
    with Ledger.open(work.store.ledger_path) as ledger:
        for index in (1, 2, 3):
            merge_ledger(ledger, Shard(index, PARTS).ledger_path(work.store.ledger_path))
        assert verify(ledger).whole
        known = {key[:16] for key in steps_behind(work.store, str(both.ref)).step_keys}
        assert known >= {part.manifest.step_key[:16] for part in parts}
    again = made(run(config, Work(work.store, Recorder(), again=True)))
    assert again.digest == one.digest
    assert calls(again) == 0


def test_the_prompts_that_the_sandbox_brings_can_be_cut_too(tmp_path: Path) -> None:
    config = GenSftConfig(teacher="sandbox", rows=60, rounds=1)
    one = made(gen_sft(config, work_at(tmp_path / "one")))
    parts = in_parts(tmp_path / "cut", gen_sft, config)
    assert sum(part.manifest.counts["seeds"] for part in parts) == 60
    both = made(sft_merge.merge(parts, work_at(tmp_path / "cut"), out="together"))
    assert str(both.ref) == "together@v1"
    assert both.digest == one.digest
    assert both.manifest.counts == one.manifest.counts


def test_a_duplicate_across_parts_ends_its_chain_in_the_order_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zephyrctl.sandbox import teacher as sandbox_teacher

    # every instruction is refined to one of a few: chains of all parts meet, and cut each other short
    before = sandbox_teacher.reply

    def few(*args: Any, **kwargs: Any) -> Any:
        text = before(*args, **kwargs)
        return (
            f"Spell the word number {len(str(text)) % 4} backwards." if "INSTRUCTION" in repr(args) else text
        )

    monkeypatch.setattr(sandbox_teacher, "reply", few)
    config = GenSftConfig(teacher="sandbox", rows=40, rounds=3, max_failures=1.0)
    one = made(gen_sft(config, work_at(tmp_path / "one")))
    assert one.manifest.counts["dropped"]["duplicate"] >= 10
    parts = in_parts(tmp_path / "cut", gen_sft, config)
    both = made(sft_merge.merge(parts, work_at(tmp_path / "cut")))
    assert sum(part.manifest.counts["kept"] for part in parts) > one.manifest.counts["kept"]
    assert both.digest == one.digest
    assert same_bytes(one, both)
    assert both.manifest.counts == one.manifest.counts


@pytest.mark.parametrize("stage", CASES)
def test_parts_that_were_closed_early_make_a_partial_whole(stage: str, tmp_path: Path) -> None:
    run, merge, config = CASES[stage]
    few, many = (config.model_copy(update={"rows": rows}) for rows in (15, 60))
    closing = many.model_copy(update={"accept_partial": True})
    one = work_at(tmp_path / "one")
    run(few, one)
    whole = made(run(closing, one))
    assert whole.manifest.counts["partial"] is True

    cut = work_at(tmp_path / "cut")
    run(few, cut)
    for index in (1, 2, 3):
        Shard(index, PARTS).begin(cut.store.ledger_path)
    parts = in_parts(tmp_path / "cut", run, closing)
    assert sum(calls(part) for part in parts) == 0
    both = made(merge(parts, cut))
    assert both.digest == whole.digest
    assert both.manifest.counts == whole.manifest.counts
    assert both.manifest.headline == whole.manifest.headline
    # it does not stand for the finished step
    finished = run(many, cut)
    assert not finished.already


def test_a_part_is_missed(tmp_path: Path) -> None:
    config = GenSftConfig(teacher="sandbox", rows=30)
    parts = in_parts(tmp_path, gen_sft, config)
    with pytest.raises(UsageError, match="parts are missing: 3/3") as raised:
        sft_merge.merge(parts[:2], work_at(tmp_path))
    assert "--shard 3/3" in str(raised.value.hint)
    other = in_parts(tmp_path, gen_sft, config.model_copy(update={"rounds": 0}))
    with pytest.raises(UsageError, match="rounds is 0, not 1"):
        sft_merge.merge([*parts[:2], other[2]], work_at(tmp_path))


def test_a_part_without_prompts_has_nothing_to_do(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Sort these words: pear apple fig"}\n')
    told = Recorder()
    work = Work(Store.open(tmp_path / "artifacts"), told)
    results = []
    for index in range(1, 4):
        config = GenSftConfig(teacher="sandbox", prompts=str(prompts), rounds=0, shard=str(Shard(index, 3)))
        results.append(gen_sft(config, work))
    assert sum(result.artifact is None for result in results) == 2
    assert sum("has none of the 1 prompts" in text for text in told.texts()) == 2
