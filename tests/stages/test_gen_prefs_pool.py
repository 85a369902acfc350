"""gen-prefs: the pool that is taken where none is named, draws, members of a larger pool, principles, and the plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.asking.line_up import line_up
from zephyrctl.errors import AuthError, UsageError
from zephyrctl.events import Recorder, Table, Warning_
from zephyrctl.project import Project
from zephyrctl.records import FeedbackRow
from zephyrctl.sandbox import teacher as sandbox_teacher
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.principles import ultrafeedback
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.testing.answers import conversation
from zephyrctl.testing.teacher import LoopbackTeacher

DROP = ["temperature", "top_p", "seed", "schema"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as found:
        monkeypatch.setenv("OPENAI_BASE_URL", found.openai_url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", found.url)
        yield found


def key(monkeypatch: pytest.MonkeyPatch, *vendors: str) -> None:
    for vendor in vendors:
        monkeypatch.setenv(f"{vendor.upper()}_API_KEY", f"sk-{vendor}-0123456789")


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    return result.artifact


def rows_of(artifact: Artifact) -> list[FeedbackRow]:
    return [row for _, _, row in artifact.rows() if isinstance(row, FeedbackRow)]


def told(work: Work) -> Recorder:
    recorder = work.emit.outside  # type: ignore[attr-defined]
    assert isinstance(recorder, Recorder)
    return recorder


def prompts_file(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sorting(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Sort these words: pear{i} apple{i} fig{i}"} for i in range(n)]


def test_a_teacher_alone_is_enough(
    work: Work, server: LoopbackTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    key(monkeypatch, "openai")
    config = GenPrefsConfig(teacher="gpt-4", rows=6, may_drop=DROP)
    first = made(gen_prefs(config, work))
    pool = first.manifest.config["pool"]
    assert len(set(pool)) == 4
    assert set(pool) < set(line_up().vendors["openai"])
    assert {c.model for row in rows_of(first) for c in row.completions} == {f"openai:{name}" for name in pool}
    assert [i.ref for i in first.manifest.inputs if i.role == "prompts"] == ["zephyrctl/seeds"]
    assert all(row.source.startswith("zephyrctl/seeds/") for row in rows_of(first))
    assert first.world == "real"
    assert gen_prefs(config, work).already
    key(monkeypatch, "anthropic")
    second = made(gen_prefs(config, work))
    assert second.manifest.step_key != first.manifest.step_key
    other = {c.model.split(":")[0] for row in rows_of(second) for c in row.completions}
    assert other == {"openai", "anthropic"}


def test_pool_prompts_and_estimate_are_told_before_the_first_call(
    tmp_path: Path, server: LoopbackTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    key(monkeypatch, "openai", "anthropic")
    dry = Work(Store.open(tmp_path / "artifacts"), Recorder(), dry_run=True)
    plan = gen_prefs(GenPrefsConfig(teacher="gpt-4", rows=5, may_drop=DROP), dry).plan
    assert server.requests == 0
    assert plan["prompts"] == {"from": "zephyrctl/seeds", "asked": 5, "left_out": 0}
    assert (len(plan["pool"]), plan["judge"]) == (4, "openai:gpt-4")
    texts = told(dry).texts()
    [pool] = [text for text in texts if text.startswith("pool: ")]
    assert str(line_up().date) in pool
    [said] = [text for text in texts if text.startswith("prompts: 5 from zephyrctl/seeds")]
    assert all(name in said for name in plan["pool"])
    titles = [e.title for e in told(dry).events if isinstance(e, Table)]
    assert titles[0] == "gen-prefs plan"


def test_without_any_key_or_with_a_sandbox_checkpoint_alone(work: Work) -> None:
    box = Project.model_validate({"endpoints": {"box": {"base_url": "http://127.0.0.1:9/v1"}}})
    with pytest.raises(AuthError, match="no pool was named"):
        gen_prefs(GenPrefsConfig(teacher="box:judge"), Work(work.store, Recorder(), project=box))
    assert not work.store.names()


def test_the_judges_prices_are_told_for_every_mode(tmp_path: Path, server: LoopbackTeacher) -> None:
    box = {"base_url": server.openai_url, "price": {"in": 100, "out": 400}}
    project = Project.model_validate({"endpoints": {"box": box}})
    path = prompts_file(tmp_path, *sorting(6))
    said = {}
    for mode in ("both", "aspects", "overall"):
        dry = Work(Store.open(tmp_path / "artifacts"), Recorder(), dry_run=True, project=project)
        config = GenPrefsConfig(
            teacher="box:judge", pool=["box:a", "box:b"], prompts=[path], judge_mode=mode, max_tokens=60
        )
        plan = gen_prefs(config, dry).plan
        [said[mode]] = [text for text in told(dry).texts() if text.startswith("what judging costs")]
        purposes = {p["for"] for p in plan["estimate"]["parts"] if p["role"] == "judge"}
        assert (
            purposes
            == {
                "both": {"aspect", "aspect repair", "overall", "overall repair"},
                "aspects": {"aspect", "aspect repair"},
                "overall": {"overall", "overall repair"},
            }[mode]
        )
    assert "both (default, this plan) $" in said["both"]
    assert "aspects (this plan) $" in said["aspects"]
    assert "both (default) $" in said["aspects"]
    # the prices are the same whichever is taken
    plain = {
        text.replace(" (default, this plan)", " (default)").replace(" (this plan)", "")
        for text in said.values()
    }
    assert len(plain) == 1


def test_members_that_differ_in_sampling_are_two_authors(work: Work) -> None:
    pool = ["sandbox:pool-a", "sandbox:pool-a?temperature=0.2", "sandbox:pool-b?temperature=0"]
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", pool=pool, rows=10), work))
    for row in rows_of(artifact):
        assert [c.model for c in row.completions] == pool
    assert artifact.manifest.config["pool"] == pool


def test_several_draws_of_each_member(work: Work) -> None:
    config = GenPrefsConfig(teacher="sandbox", pool=["sandbox:pool-a", "sandbox:pool-d"], n=3, rows=8)
    artifact = made(gen_prefs(config, work))
    for row in rows_of(artifact):
        assert Counter(c.model for c in row.completions) == {"sandbox:pool-a": 3, "sandbox:pool-d": 3}
        assert [c.draw for c in row.completions] == [0, 1, 2] * 2
    assert artifact.manifest.counts["completions"]["asked"] == 8 * 6
    # one member that answers twice is a pool as well
    alone = GenPrefsConfig(teacher="sandbox", pool=["sandbox:pool-a"], n=2, rows=8)
    assert all(len(row.completions) == 2 for row in rows_of(made(gen_prefs(alone, work))))
    # and what one draw gave is not bought again
    fewer = made(gen_prefs(config.model_copy(update={"n": 1}), work))
    assert not any(t["calls"] for t in fewer.manifest.teachers if t["model"].startswith("sandbox:pool"))


LARGE = [f"sandbox:pool-{x}" for x in "abcd"] + [f"sandbox:pool-{x}?temperature=0.5" for x in "abcd"]


def test_of_a_larger_pool_four_are_drawn_for_each_prompt(work: Work, tmp_path: Path) -> None:
    config = GenPrefsConfig(teacher="sandbox", pool=LARGE, rows=40, judge_mode="overall")
    artifact = made(gen_prefs(config, work))
    chosen = {row.prompt_id: {c.model for c in row.completions} for row in rows_of(artifact)}
    assert {len(models) for models in chosen.values()} == {4}
    assert len({frozenset(models) for models in chosen.values()}) > 20
    assert set().union(*chosen.values()) == set(LARGE)
    # the order of the pool, more prompts and parts change nothing of it
    turned = config.model_copy(update={"pool": LARGE[::-1], "rows": 60})
    again = rows_of(made(gen_prefs(turned, Work(Store.open(tmp_path / "other")))))
    found = {row.prompt_id: {c.model for c in row.completions} for row in again}
    assert {identity: found[identity] for identity in chosen} == chosen


def test_the_estimate_of_a_larger_pool_counts_the_calls_it_makes(tmp_path: Path) -> None:
    config = GenPrefsConfig(teacher="sandbox", pool=LARGE, rows=30, n=2, judge_mode="overall")
    dry = Work(Store.open(tmp_path / "artifacts"), dry_run=True)
    parts = gen_prefs(config, dry).plan["estimate"]["parts"]
    expected = {p["model"]: p["calls"]["likely"] for p in parts if p["for"] == "completion"}
    artifact = made(gen_prefs(config, Work(Store.open(tmp_path / "artifacts"))))
    counted = Counter(c.model.split("?")[0] for row in rows_of(artifact) for c in row.completions)
    assert expected == counted
    assert sum(expected.values()) == 30 * 8


def test_principles_reach_the_answering_model_and_never_the_judge(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sandbox_teacher.reply
    seen: list[tuple[str, list[dict[str, str]]]] = []

    def reply(who: str, messages: list[dict[str, str]], **kwargs: Any) -> str:
        seen.append((who, messages))
        return honest(who, messages, **kwargs)

    monkeypatch.setattr(sandbox_teacher, "reply", reply)
    own = {
        "prompt": [
            {"role": "system", "content": "Be a pirate."},
            {"role": "user", "content": "Add 1 and 1."},
        ]
    }
    path = prompts_file(tmp_path, *sorting(20), own)
    config = GenPrefsConfig(teacher="sandbox", prompts=[path], principles="ultrafeedback")
    artifact = made(gen_prefs(config, work))
    texts = {text for wordings in ultrafeedback().texts.values() for text in wordings}
    systems = {
        who: [m["content"] for m in messages if m["role"] == "system" and m["content"] in texts]
        for who, messages in seen
    }
    assert not systems["teacher"]
    judged = " ".join(m["content"] for who, messages in seen if who == "teacher" for m in messages)
    assert not any(text in judged for text in texts)
    asked = [messages for who, messages in seen if who != "teacher"]
    assert sum(messages[0]["content"] in texts for messages in asked) == 20 * 4
    assert sum(messages[0]["content"] == "Be a pirate." and len(messages) == 2 for messages in asked) == 4
    drawn = Counter(c.principle for row in rows_of(artifact) for c in row.completions)
    assert drawn.pop(None) == 4
    assert artifact.manifest.counts["principles"] == dict(sorted(drawn.items()))
    assert len(drawn) >= 3
    assert [i.role for i in artifact.manifest.inputs].count("principles") == 1
    assert any("1 prompts have a system message of their own" in text for text in told(work).texts())
    plain = made(gen_prefs(config.model_copy(update={"principles": "none"}), work))
    assert plain.manifest.step_key != artifact.manifest.step_key
    assert {c.principle for row in rows_of(plain) for c in row.completions} == {None}


def test_principles_go_over_the_wire_as_a_system_message(
    work: Work, server: LoopbackTeacher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key(monkeypatch, "openai")
    path = prompts_file(tmp_path, *sorting(3))
    pool = ["openai:pool-a", "openai:pool-b"]
    config = GenPrefsConfig(
        teacher="gpt-4", pool=pool, prompts=[path], principles="ultrafeedback", judge_mode="overall"
    )
    gen_prefs(config, work)
    asked = [conversation(body) for body in server.bodies if body["model"].startswith("pool-")]
    assert len(asked) == 6
    assert all([turn["role"] for turn in turns] == ["system", "user"] for turns in asked)


def test_default_max_new_tokens_truncation_is_loud(
    work: Work, tmp_path: Path, server: LoopbackTeacher
) -> None:
    """The trap of a small default length: more than 1 % of answers cut off is a warning, never silent data."""
    server.answer = lambda body: "word " * (200 if body["model"] == "a" else 5)
    box = Project.model_validate({"endpoints": {"box": {"base_url": server.openai_url}}})
    with_box = Work(work.store, Recorder(), project=box)
    path = prompts_file(tmp_path, *sorting(5))
    pool = ["box:a", "box:b", "box:c"]
    config = GenPrefsConfig(
        teacher="sandbox", pool=pool, prompts=[path], max_tokens=32, max_failures=0.5, judge_mode="overall"
    )
    artifact = made(gen_prefs(config, with_box))
    assert artifact.manifest.counts["completions"] == {"asked": 15, "kept": 10, "left_out": {"cut_off": 5}}
    warned = [e.text for e in told(with_box).events if isinstance(e, Warning_)]
    assert any("5 of 15 completions were cut off at max_tokens=32" in text for text in warned)


def test_draws_at_temperature_zero_are_warned_of(work: Work) -> None:
    pool = ["sandbox:pool-a?temperature=0", "sandbox:pool-b"]
    gen_prefs(GenPrefsConfig(teacher="sandbox", pool=pool, n=2, rows=4), work)
    warned = [e.text for e in told(work).events if isinstance(e, Warning_)]
    assert any("sandbox:pool-a?temperature=0 answers more than once at temperature 0" in w for w in warned)


def test_a_model_folder_can_answer_beside_the_sandbox(work: Work, tiny: Path) -> None:
    pytest.importorskip("torch")
    pool = ["sandbox:pool-a", str(tiny), f"{tiny}?temperature=0.3"]
    config = GenPrefsConfig(teacher="sandbox", pool=pool, rows=4, max_tokens=8, max_failures=1.0)
    artifact = made(gen_prefs(config, work))
    assert artifact.world == "sandbox"
    assert [i.role for i in artifact.manifest.inputs].count("pool") == 2
    counts = artifact.manifest.counts["completions"]
    assert counts["asked"] == 12 == counts["kept"] + sum(counts["left_out"].values())


def test_a_pool_beside_completions_is_refused(work: Work) -> None:
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=4), work)
    with pytest.raises(UsageError, match="--pool has no place"):
        gen_prefs(GenPrefsConfig(teacher="sandbox", completions="feedback", pool=["sandbox:pool-a"]), work)
