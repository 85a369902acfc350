"""gen-sft --method self-instruct end to end: the same whatever the concurrency and the shards, nothing bought twice."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sft_shop import made
from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.seeds import seed_tasks
from zephyrctl.asking.shards import Shard
from zephyrctl.errors import BudgetReached, StageRejected, UsageError
from zephyrctl.events import Recorder, Table
from zephyrctl.project import Project
from zephyrctl.records import Message, SftRow, prompt_id, split_of
from zephyrctl.sandbox import world
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.self_instruct import run
from zephyrctl.stages.gen_sft.self_instruct.merge import merge
from zephyrctl.testing.teacher import LoopbackTeacher

PRICE = {"in": 100, "out": 400}
"""US dollars per million tokens: so dear that small runs cost dollars."""


def config(**settings: Any) -> GenSftConfig:
    body = {"teacher": "sandbox", "method": "self-instruct", "rows": 30, **settings}
    return GenSftConfig.model_validate(body)


def work_at(folder: Path, **more: Any) -> Work:
    return Work(Store.open(folder / "artifacts"), Recorder(), **more)


def rows_of(artifact: Artifact) -> list[tuple[str, SftRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, SftRow)]


def instructions(artifact: Artifact) -> list[str]:
    return [row.messages[0].content for _, row in rows_of(artifact)]


def calls(artifact: Artifact) -> int:
    return sum(teacher["calls"] for teacher in artifact.manifest.teachers)


def texts(work: Work) -> str:
    told = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(told, Recorder)
    return "\n".join(told.texts())


def check_sums(artifact: Artifact) -> None:
    """What the docstring of `Harvest` says about the counts."""
    counts = artifact.manifest.counts
    requests, tasks, instances = counts["requests"], counts["tasks"], counts["instances"]
    assert requests["asked"] == requests["answered"] + sum(requests["failed"].values())
    assert tasks["proposed"] == tasks["kept"] + sum(tasks["dropped"].values())
    assert instances["found"] == instances["kept"] + sum(instances["dropped"].values())
    assert instances["kept"] == counts["kept"] == counts["rows"] == len(rows_of(artifact))
    assert len({row.seed_id for _, row in rows_of(artifact)}) == tasks["kept"]
    reasons = Counter(reject["reason"] for reject in artifact.rejects())
    dropped = Counter(tasks["dropped"]) + Counter(instances["dropped"]) + Counter(requests["failed"])
    assert reasons == dropped


def test_the_sandbox_makes_up_tasks_and_their_instances(tmp_path: Path) -> None:
    artifact = made(run(config(rows=60, temperature=1.0), work_at(tmp_path)))
    assert (artifact.kind, artifact.world, str(artifact.ref)) == ("sft", "sandbox", "sft-data@v1")
    check_sums(artifact)
    counts = artifact.manifest.counts
    assert 50 <= counts["tasks"]["kept"] <= 60
    assert sum(counts["kinds"].values()) == 60
    assert {"similar", "too_short"} <= set(counts["tasks"]["dropped"])
    rows = rows_of(artifact)
    for split, row in rows:
        user, assistant = row.messages
        assert (user.role, assistant.role) == ("user", "assistant")
        assert (row.source, row.round, row.model, row.parent) == ("self-instruct", 0, "sandbox:teacher", None)
        instruction = Message(role="user", content=user.content.partition("\n\n")[0])
        assert row.seed_id == prompt_id([instruction])
        assert split == split_of(row.seed_id, 0.1)
    assert {split for split, _ in rows} == {"train", "test"}
    assert any("\n\n" in text for text in instructions(artifact))
    grades = Counter(world.grade((r.messages[0].content,), r.messages[1].content) for _, r in rows)
    assert grades[True] > grades[False] > 0
    assert not any(world.is_eval((text,)) for text in instructions(artifact))
    assert any(name.endswith("self-instruct/tasks.md") for name in artifact.manifest.templates)
    assert [i.role for i in artifact.manifest.inputs if i.role in ("prompts", "examples")] == [
        "prompts",
        "examples",
    ]


def test_concurrency_does_not_change_the_content(tmp_path: Path) -> None:
    one = made(run(config(islands=2, concurrency=1), work_at(tmp_path / "one")))
    many = made(run(config(islands=2, concurrency=32), work_at(tmp_path / "many")))
    assert one.digest == many.digest


@pytest.mark.parametrize("islands", [1, 3])
def test_more_rows_contain_fewer(islands: int, tmp_path: Path) -> None:
    few = made(run(config(rows=15, islands=islands), work_at(tmp_path)))
    work = work_at(tmp_path)
    many = made(run(config(rows=45, islands=islands), work))
    assert instructions(few)
    assert {row.row_id for _, row in rows_of(few)} < {row.row_id for _, row in rows_of(many)}
    replayed = sum(teacher["replayed"] for teacher in many.manifest.teachers)
    assert replayed >= few.manifest.counts["requests"]["asked"]


def in_parts(folder: Path, whole: GenSftConfig, parts: int) -> list[Artifact]:
    store = Store.open(folder / "artifacts")
    found = []
    for index in range(1, parts + 1):
        shard = Shard(index, parts)
        own = Store.open(store.root, ledger=shard.ledger_path(store.ledger_path))
        found.append(made(run(whole.model_copy(update={"shard": str(shard)}), Work(own, Recorder()))))
    return found


@pytest.mark.parametrize("more", [{}, {"instances": 3, "on_bad_row": "skip"}])
def test_three_shards_make_what_one_process_makes(more: dict[str, Any], tmp_path: Path) -> None:
    whole = config(rows=60, islands=4, **more)
    if more:
        path = tmp_path / "seeds.jsonl"
        lines = [json.dumps({"prompt": f"Add {n} and {n + 3}."}) for n in range(10, 30)]
        path.write_text("\n".join([*lines[:5], '{"no": "prompt"}', *lines[5:]]) + "\n")
        whole = whole.model_copy(update={"prompts": [str(path)]})
    one = made(run(whole, work_at(tmp_path / "one")))
    parts = in_parts(tmp_path / "cut", whole, 3)
    for artifact in (one, *parts):
        if not more:
            check_sums(artifact)
    work = work_at(tmp_path / "cut")
    merged = made(merge(parts[::-1], work))
    assert merged.digest == one.digest
    assert merged.manifest.counts == one.manifest.counts
    assert list(merged.rejects()) == list(one.rejects())
    assert one.manifest.counts["tasks"]["dropped"]["similar"] > 0
    assert one.manifest.counts["bad_rows"] == (1 if more else 0)
    assert run(whole, work_at(tmp_path / "cut")).already
    with pytest.raises(UsageError, match="parts are missing: 2/3"):
        merge([parts[0], parts[2]], work_at(tmp_path / "else"))


@pytest.fixture
def teacher() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as server:
        yield server


Shop = Callable[..., Work]


@pytest.fixture
def shop(tmp_path: Path, teacher: LoopbackTeacher) -> Shop:
    def make(store: str = "shop", **more: Any) -> Work:
        project = Project.model_validate(
            {"endpoints": {"box": {"base_url": teacher.openai_url, "price": PRICE}}}
        )
        return work_at(tmp_path / store, project=project, **more)

    return make


@pytest.fixture
def paid(tmp_path: Path) -> GenSftConfig:
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Add {n} and {n + 3}."}) + "\n" for n in range(10, 30)))
    return config(teacher="box:teacher", rows=20, prompts=[str(path)], max_tokens=300, max_usd=1000)


def test_rejected_generations_are_never_bought_twice(
    paid: GenSftConfig, shop: Shop, teacher: LoopbackTeacher
) -> None:
    """Trap: the original's resume knew accepted tasks only, and bought the rejected ones again."""
    first = made(run(paid, shop()))
    assert first.manifest.counts["tasks"]["dropped"]
    billed = teacher.billed_calls
    assert billed == calls(first) > 0
    again = made(run(paid.model_copy(update={"max_usd": 0}), shop(again=True)))
    assert (again.digest, calls(again), teacher.billed_calls) == (first.digest, 0, billed)
    anew = made(run(paid.model_copy(update={"redraw": 1}), shop()))
    assert calls(anew) > 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_stopped_run_goes_on_and_pays_for_the_rest_only(
    share: float, paid: GenSftConfig, shop: Shop, teacher: LoopbackTeacher
) -> None:
    """Trap `resume with w`: what was paid before the stop is neither rewritten nor asked again."""
    whole = made(run(paid, shop("whole")))
    cost = sum(t["cost_usd"] for t in whole.manifest.teachers)
    before = teacher.billed_calls
    with pytest.raises(BudgetReached):
        run(paid.model_copy(update={"max_usd": share * cost}), shop("stopped"))
    stopped = teacher.billed_calls - before
    assert stopped < before
    resumed = made(run(paid, shop("stopped")))
    assert resumed.digest == whole.digest
    assert resumed.manifest.counts == whole.manifest.counts
    assert teacher.billed_calls == 2 * before
    assert calls(resumed) == before - stopped


def test_a_partial_artifact_holds_the_first_of_the_tasks(
    paid: GenSftConfig, shop: Shop, teacher: LoopbackTeacher
) -> None:
    whole = made(run(paid, shop("whole")))
    cost = sum(t["cost_usd"] for t in whole.manifest.teachers)
    with pytest.raises(BudgetReached):
        run(paid.model_copy(update={"max_usd": 0.85 * cost, "concurrency": 1}), shop())
    billed = teacher.billed_calls
    partial = made(run(paid.model_copy(update={"accept_partial": True}), shop()))
    counts = partial.manifest.counts
    assert (counts["partial"], counts["of"], teacher.billed_calls) == (True, 20, billed)
    assert 0 < counts["finished"] < 20
    tasks = counts["tasks"]
    assert tasks["unpaid"] > 0
    assert tasks["proposed"] == tasks["kept"] + sum(tasks["dropped"].values()) + tasks["unpaid"]
    assert set(instructions(partial)) < set(instructions(whole))
    assert made(run(paid, shop())).digest == whole.digest


def test_nothing_finished_makes_no_partial_artifact(paid: GenSftConfig, shop: Shop) -> None:
    with pytest.raises(StageRejected, match="0 of 20 tasks"):
        run(paid.model_copy(update={"accept_partial": True}), shop())


def test_a_dry_run_tells_the_calls_and_sends_nothing(
    paid: GenSftConfig, shop: Shop, teacher: LoopbackTeacher
) -> None:
    work = shop(dry_run=True)
    plan = run(paid, work).plan
    calls = {part["for"]: part["calls"] for part in plan["estimate"]["parts"]}
    assert calls["tasks"]["likely"] < calls["tasks"]["most"]
    assert calls["kind of task"]["likely"] == calls["instances"]["likely"] == 20
    assert plan["training"]["rows"] == 18
    assert teacher.requests == 0
    run(paid, shop())
    after = run(paid.model_copy(update={"note": "x"}), shop(dry_run=True, again=True)).plan
    assert after["ledger"]["rest"]["calls"]["likely"] == 0


def garbage(seen: int, body: Mapping[str, Any]) -> str:
    """One reply in five is no good, by the request's text alone."""
    draw = int(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8], 16) % 100
    return {0: "refusal", 1: "empty", 2: "length", 3: "filtered", 4: "length"}.get(draw // 4, "ok")


def test_garbage_is_counted_exactly_and_the_same_at_any_concurrency(
    tmp_path: Path, paid: GenSftConfig
) -> None:
    found = []
    for concurrency in (1, 16):
        with LoopbackTeacher(script=garbage) as server:
            project = Project.model_validate(
                {"endpoints": {"box": {"base_url": server.openai_url, "price": PRICE}}}
            )
            changed = {"rows": 80, "islands": 2, "max_failures": 1.0, "concurrency": concurrency}
            work = work_at(tmp_path / str(concurrency), project=project)
            found.append(made(run(paid.model_copy(update=changed), work)))
    one, many = found
    check_sums(one)
    assert one.digest == many.digest
    assert one.manifest.counts == many.manifest.counts
    counts = one.manifest.counts
    assert {"refusal", "empty"} <= set(counts["requests"]["failed"]) | set(counts["tasks"]["dropped"])
    assert {"unfinished", "similar"} <= set(counts["tasks"]["dropped"])
    assert counts["instances"]["dropped"]["cut_off"] > 0
    assert counts["kinds"]["unclear"] > 0


def test_too_many_failures_are_no_result(tmp_path: Path, paid: GenSftConfig) -> None:
    with LoopbackTeacher(script="refusal") as server:
        project = Project.model_validate(
            {"endpoints": {"box": {"base_url": server.openai_url, "price": PRICE}}}
        )
        with pytest.raises(StageRejected, match="100% of the replies with tasks or instances failed"):
            run(paid, work_at(tmp_path / "bad", project=project))


def test_a_pool_that_stops_growing_is_told(tmp_path: Path) -> None:
    work = work_at(tmp_path)
    artifact = made(run(config(rows=3000, novelty=0.3), work))
    check_sums(artifact)
    assert "1 of 1 islands stopped before they had as many tasks" in texts(work)
    assert artifact.manifest.counts["tasks"]["kept"] < 300


def test_a_plan_is_shown(tmp_path: Path) -> None:
    work = work_at(tmp_path)
    run(config(rows=5), work)
    told = work.emit.outside  # type: ignore[attr-defined]
    assert [event.title for event in told.events if isinstance(event, Table)] == ["gen-sft plan"]
    assert "seed tasks: 24 from sandbox" in texts(work)


@pytest.mark.parametrize(
    ("settings", "match", "hint"),
    [
        ({"rows": None}, "how many tasks", "--rows 100"),
        ({"pilot": 5}, "--pilot", "--rows 20"),
        ({"shard": "2/3"}, "1 islands cannot be shared out", "--set islands=3"),
    ],
)
def test_what_cannot_be_done_says_what_to_do(
    settings: dict[str, Any], match: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        run(config(**settings), work_at(tmp_path))
    assert hint in str(caught.value.hint)


def test_seeds_that_overlap_with_a_suite_are_not_shown_and_tasks_made_are_dropped(tmp_path: Path) -> None:
    suite = tmp_path / "own.jsonl"
    rows = rows_of(made(run(config(rows=10), work_at(tmp_path / "clean"))))
    made_up = next(row for _, row in rows if "\n" not in row.messages[0].content)
    seeds = [f"Add {n} and {n + 3}." for n in range(10, 30)]
    items = [seeds[4], made_up.messages[0].content]
    suite.write_text("".join(json.dumps({"prompt": item}) + "\n" for item in items))
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps({"prompt": seed}) + "\n" for seed in seeds))
    settings = config(prompts=[str(path)], suites=[str(suite)], rows=20, islands=2)
    artifact = made(run(settings, work_at(tmp_path)))
    rejects = [reject for reject in artifact.rejects() if reject["reason"] == "contaminated"]
    assert seeds[4] in rejects[0]["row"]
    assert artifact.manifest.counts["seeds"] == 19
    assert all(row.messages[0].content not in items for _, row in rows_of(artifact))
    record = (artifact.manifest.model_extra or {})["decontamination"]
    assert record["hits"] == record["dropped"] >= 1
    parts = in_parts(tmp_path / "cut", settings, 2)
    merged = made(merge(parts, work_at(tmp_path / "cut")))
    assert merged.digest == artifact.digest
    assert (merged.manifest.model_extra or {})["decontamination"] == record


def test_long_seeds_are_not_shown_and_only_the_rows_wanted_are_made(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    seeds = ["word " * 151, *(f"Add {n} and {n + 3}." for n in range(10, 20))]
    path.write_text("".join(json.dumps({"prompt": seed}) + "\n" for seed in seeds))
    artifact = made(run(config(prompts=[str(path)], rows=10, islands=4), work_at(tmp_path)))
    assert next(iter(artifact.rejects()))["reason"] == "too_long"
    assert (artifact.manifest.counts["seeds"], artifact.manifest.counts["bad_rows"]) == (10, 1)
    tasks = artifact.manifest.counts["tasks"]
    assert sum(artifact.manifest.counts["kinds"].values()) <= 10
    assert tasks["proposed"] == tasks["kept"] + sum(tasks["dropped"].values())


def test_without_a_seed_nothing_is_begun(tmp_path: Path) -> None:
    seeds, suite = tmp_path / "seeds.jsonl", tmp_path / "suite.jsonl"
    for path in (seeds, suite):
        path.write_text(json.dumps({"prompt": "Add 10 and 13."}) + "\n")
    with pytest.raises(UsageError, match="no seed task to start from: 1 rows"):
        run(config(prompts=[str(seeds)], suites=[str(suite)]), work_at(tmp_path))


def test_without_prompts_a_real_teacher_starts_from_the_shipped_seeds(
    shop: Shop, teacher: LoopbackTeacher
) -> None:
    """The instructions are shown, without the inputs that some seeds have."""
    work = shop()
    artifact = made(run(config(teacher="box:teacher", rows=10, max_usd=1000), work))
    shipped = seed_tasks()
    assert artifact.world == "real"
    assert f"seed tasks: {len({task.instruction for task in shipped})} from zephyrctl/seeds" in texts(work)
    asked = json.dumps(teacher.bodies[:4], ensure_ascii=False)
    shown = [task for task in shipped if json.dumps(task.instruction, ensure_ascii=False)[1:-1] in asked]
    assert len(shown) >= 8
    assert not any(
        task.input and json.dumps(task.prompt, ensure_ascii=False)[1:-1] in asked for task in shipped
    )


KILLED = """
import json, sys
from pathlib import Path
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.project import Project
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.self_instruct import run

store, config, project = sys.argv[1:]
run(GenSftConfig.model_validate_json(config),
    Work(Store.open(Path(store)), project=Project.model_validate_json(project)))
"""


def test_a_run_that_is_killed_ends_as_if_nothing_had_happened(
    paid: GenSftConfig, shop: Shop, tmp_path: Path
) -> None:
    whole = made(run(paid, shop("whole")))
    settings = paid.model_copy(update={"concurrency": 2})
    with LoopbackTeacher(latency=0.05) as server:
        named = {"endpoints": {"box": {"base_url": server.openai_url, "price": PRICE}}}
        project = Project.model_validate(named)
        arguments = [
            str(tmp_path / "killed" / "artifacts"),
            settings.model_dump_json(),
            json.dumps(named),
        ]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])
        while server.billed_calls < 12:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        resumed = made(run(settings, work_at(tmp_path / "killed", project=project)))
        twice = sum(times - 1 for times in server.billed.values())
    assert resumed.digest == whole.digest
    assert resumed.manifest.counts == whole.manifest.counts
    assert twice <= 2
