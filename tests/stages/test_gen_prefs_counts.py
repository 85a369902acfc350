"""The funnel of gen-prefs adds up at every step, with refusals, cut answers and garbage judgements on the way, and is
the same whatever the concurrency and the parts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import BudgetReached
from zephyrctl.events import Recorder
from zephyrctl.project import Project
from zephyrctl.records import FeedbackRow
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.merge import merge
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.testing.answers import answer_text
from zephyrctl.testing.teacher import LoopbackTeacher

PROMPTS = 66
DISTINCT = 60
GARBAGE = 0.03
POOL = ["box:pool-a", "box:pool-b", "box:pool-c", "box:pool-d", "box:pool-a?temperature=0.5"]


def share(body: Mapping[str, Any]) -> float:
    """A number in [0, 1) for each request, the same whenever it is asked."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def script(times: int, body: Mapping[str, Any]) -> str:
    if body["model"] == "judge":
        return "ok"
    drawn = share(body)
    return "refusal" if drawn < 0.02 else "length" if drawn < 0.04 else "ok"


def answer(body: Mapping[str, Any]) -> str:
    if body["model"] == "judge" and share(body) < GARBAGE:
        return "1. five stars\n\n2. 10/10 would read again"
    return answer_text(body)


@pytest.fixture
def server() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher(script=script, answer=answer) as found:
        yield found


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def check(artifact: Artifact) -> None:
    """Every sum of the manifest against the rows, the rejects and itself."""
    counts = artifact.manifest.counts
    rows = [row for _, _, row in artifact.rows() if isinstance(row, FeedbackRow)]
    rejects = Counter(reject["reason"] for reject in artifact.rejects())
    assert counts["prompts"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] == counts["rows"] == len(rows) == sum(counts["splits"].values())
    assert counts["dropped"] == dict(rejects)
    done = counts["completions"]
    assert done["asked"] == done["kept"] + sum(done["left_out"].values())
    in_rows = sum(len(row.completions) for row in rows)
    in_rejects = done["kept"] - in_rows
    assert 0 <= in_rejects <= rejects["too_few_completions"]
    ratings = counts["ratings"]
    assert ratings["asked"] == ratings["rated"] + ratings["not_applicable"] + sum(
        ratings["unscored"].values()
    )
    assert ratings["asked"] == 5 * in_rows
    values = [r.value for row in rows for c in row.completions for r in c.ratings]
    values += [c.overall for row in rows for c in row.completions]
    assert sum(value is not None for value in values) == ratings["rated"]
    assert sum(counts["principles"].values()) == done["kept"]
    assert counts["judge_requests"] == 4 * len(rows) + in_rows + counts["repairs"]["asked"]


def test_counts_add_up_and_concurrency_parts_and_a_stop_change_nothing(
    tmp_path: Path, server: LoopbackTeacher
) -> None:
    path = tmp_path / "prompts.jsonl"
    texts = [
        f"Sort these words: pear{i % DISTINCT} apple{i % DISTINCT} fig{i % DISTINCT}" for i in range(PROMPTS)
    ]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    box = {"base_url": server.openai_url, "price": {"in": 1, "out": 4}}
    project = Project.model_validate({"endpoints": {"box": box}})
    config = GenPrefsConfig(
        teacher="box:judge", pool=POOL, prompts=[str(path)], principles="ultrafeedback", max_tokens=64
    )
    work = Work(Store.open(tmp_path / "one"), Recorder(), project=project, yes=True)
    one = made(gen_prefs(config.model_copy(update={"concurrency": 4}), work))
    check(one)
    counts = one.manifest.counts
    assert counts["completions"]["asked"] == 4 * DISTINCT
    assert set(counts["completions"]["left_out"]) == {"refusal", "cut_off"}
    assert counts["repairs"]["asked"] >= counts["repairs"]["mended"] > 0
    assert counts["dropped"]["duplicate"] == PROMPTS - DISTINCT

    # stopped in the middle by its budget, then finished with another concurrency
    other = Work(Store.open(tmp_path / "two"), Recorder(), project=project, yes=True)
    spent = sum(t["cost_usd"] for t in one.manifest.teachers)
    with pytest.raises(BudgetReached):
        gen_prefs(config.model_copy(update={"max_usd": spent / 2}), other)
    two = made(gen_prefs(config.model_copy(update={"concurrency": 32}), other))
    assert sum(t["replayed"] for t in two.manifest.teachers) > 0
    check(two)

    store = Store.open(tmp_path / "cut")
    parts = []
    for index in range(1, 5):
        shard = Shard(index, 4)
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        cut = config.model_copy(update={"shard": str(shard), "concurrency": 8 * index})
        parts.append(made(gen_prefs(cut, Work(own, Recorder(), project=project, yes=True))))
    both = made(merge(parts, Work(store, Recorder(), project=project)))
    check(both)
    assert one.digest == two.digest == both.digest
    assert one.manifest.counts == two.manifest.counts == both.manifest.counts
