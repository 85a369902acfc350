"""gen-sft, gen-prefs and binarize end to end: sandbox in, artifacts out, through caller, ledger and store."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import AuthError, BadRow, RefNotFound, StageRejected, UsageError, WrongKind
from zephyrctl.events import Recorder, Table
from zephyrctl.records import FeedbackRow, PreferenceRow, SftRow, split_of
from zephyrctl.sandbox import teacher as sandbox_teacher
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.run import run as binarize
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft
from zephyrctl.testing.teacher import LoopbackTeacher


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "artifacts"), Recorder())


def other_work(tmp_path: Path) -> Work:
    return Work(Store.open(tmp_path / "elsewhere" / "artifacts"), Recorder())


def made(result: StepResult) -> Artifact:
    assert result.artifact is not None
    assert result.ref == str(result.artifact.ref)
    return result.artifact


def sft_rows(artifact: Artifact) -> list[tuple[str, SftRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, SftRow)]


def feedback_rows(artifact: Artifact) -> list[tuple[str, FeedbackRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, FeedbackRow)]


def pairs_of(artifact: Artifact) -> list[tuple[str, PreferenceRow]]:
    return [(split, row) for _, split, row in artifact.rows() if isinstance(row, PreferenceRow)]


def calls(artifact: Artifact) -> int:
    return sum(t["calls"] for t in artifact.manifest.teachers)


def prompts_file(folder: Path, *lines: str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def asking(*prompts: str) -> list[str]:
    return [json.dumps({"prompt": p}) for p in prompts]


def test_gen_sft_makes_chains_that_follow_their_seed(work: Work) -> None:
    artifact = made(gen_sft(GenSftConfig(teacher="sandbox", rows=60, rounds=2), work))
    assert (str(artifact.ref), artifact.kind, artifact.world) == ("sft-data@v1", "sft", "sandbox")
    rows = sft_rows(artifact)
    counts = artifact.manifest.counts
    assert (
        counts["seeds"] * 3 == 180 == counts["kept"] + sum(counts["dropped"].values()) + counts["not_reached"]
    )
    assert counts["kept"] == len(rows) == counts["rows"]
    by_id = {row.row_id: row for _, row in rows}
    assert len(by_id) == len(rows)
    for split, row in rows:
        assert row.seed_id is not None
        assert split == split_of(row.seed_id, 0.1)
        assert (row.parent is None) == (row.round == 0)
        if row.parent is not None:
            assert (by_id[row.parent].round, by_id[row.parent].seed_id) == (row.round - 1, row.seed_id)
    assert {split for split, _ in rows} == {"train", "test"}
    assert any(len(row.messages) == 4 for _, row in rows)
    assert list(artifact.manifest.templates) == ["gen-sft/refine.md"]
    assert [t["model"] for t in artifact.manifest.teachers] == ["sandbox:teacher"]


def test_a_finished_step_is_found_and_again_pays_nothing(work: Work) -> None:
    config = GenSftConfig(teacher="sandbox", rows=12)
    first = gen_sft(config, work)
    again = gen_sft(config.model_copy(update={"concurrency": 1, "max_failures": 0.9}), work)
    assert (again.ref, again.already) == (first.ref, True)
    anew = made(gen_sft(config, Work(work.store, again=True)))
    assert str(anew.ref) == "sft-data@v2"
    assert anew.digest == made(first).digest
    assert (calls(made(first)) > 0, calls(anew)) == (True, 0)
    assert made(gen_sft(config.model_copy(update={"seed": 1}), work)).digest != anew.digest


def test_concurrency_does_not_change_the_content_and_more_rows_contain_fewer(
    work: Work, tmp_path: Path
) -> None:
    config = GenSftConfig(teacher="sandbox", rows=25)
    one = made(gen_sft(config.model_copy(update={"concurrency": 1}), work))
    many = made(gen_sft(config.model_copy(update={"concurrency": 32}), other_work(tmp_path)))
    assert one.digest == many.digest
    more = {row.row_id for _, row in sft_rows(made(gen_sft(config.model_copy(update={"rows": 50}), work)))}
    assert {row.row_id for _, row in sft_rows(one)} <= more


def test_from_prompts_to_pairs(work: Work) -> None:
    sft = made(gen_sft(GenSftConfig(teacher="sandbox", rows=40), work))
    feedback = made(gen_prefs(GenPrefsConfig(teacher="sandbox"), work))
    assert str(feedback.ref) == "feedback@v1"
    assert [i.ref for i in feedback.manifest.inputs if i.role == "prompts"] == ["sft-data@v1"]
    assert feedback.manifest.config["pool"] == [f"sandbox:pool-{x}" for x in "abcd"]
    splits = {row.prompt_id: split for split, row in sft_rows(sft)}
    scores = defaultdict(list)
    places = Counter()
    for split, row in feedback_rows(feedback):
        if row.prompt_id in splits:
            assert split == splits[row.prompt_id]
        assert row.judge == "sandbox:teacher"
        for c in row.completions:
            assert len(c.ratings) == 4
            assert c.overall is not None
            scores[c.model].append(c.overall)
            places.update((r.aspect, r.position) for r in c.ratings)
    assert fmean(scores["sandbox:pool-a"]) > fmean(scores["sandbox:pool-d"]) + 1
    assert len(places) == 16
    counts = feedback.manifest.counts
    assert counts["prompts"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["completions"]["asked"] == 4 * counts["kept"]

    result = binarize(BinarizeConfig(), work)
    prefs = made(result)
    assert (str(prefs.ref), result.sides) == ("prefs@v1", {"prefs-best": "prefs-best@v1"})
    pairs = pairs_of(prefs)
    rated = {row.prompt_id: (split, row) for split, row in feedback_rows(feedback)}
    for split, pair in pairs:
        home, row = rated[pair.prompt_id]
        best = max(c.overall or 0 for c in row.completions)
        assert split == home
        assert pair.score_chosen == best
        assert pair.score_rejected is not None
        assert pair.score_rejected < best
        assert not pair.tie
    funnel = prefs.manifest.counts
    assert funnel["prompts"] == funnel["pairs"] + sum(funnel["dropped"].values()) == len(rated)
    assert funnel["pairs"] == len(pairs) == funnel["rows"]
    best_rows = sft_rows(work.store.resolve("prefs-best"))
    assert [(s, r.prompt_id, r.messages) for s, r in best_rows] == [
        (s, p.prompt_id, [*p.prompt, *p.chosen]) for s, p in pairs
    ]
    assert work.store.resolve("prefs-best").manifest.side
    again = binarize(BinarizeConfig(max_dropped=0.9), work)
    assert (again.ref, again.already, again.sides) == ("prefs@v1", True, {"prefs-best": "prefs-best@v1"})
    worst = made(binarize(BinarizeConfig(rejected="worst", score="mean", ties="margin=0.5"), work))
    assert all((p.score_chosen or 0) - (p.score_rejected or 0) >= 0.5 for _, p in pairs_of(worst))


def test_the_funnel_and_the_plan_are_shown(work: Work) -> None:
    seen = Recorder()
    told = Work(work.store, seen)
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=8), told)
    binarize(BinarizeConfig(), told)
    titles = [e.title for e in seen.events if isinstance(e, Table)]
    assert titles[0] == "gen-prefs plan"
    assert titles.index("from feedback to pairs") < titles.index("by model")
    assert any("feedback@v1, the newest" in text for text in seen.texts())


def test_gen_prefs_is_the_same_whatever_the_concurrency(work: Work, tmp_path: Path) -> None:
    config = GenPrefsConfig(teacher="sandbox", rows=15)
    one = made(gen_prefs(config.model_copy(update={"concurrency": 1}), work))
    many = made(gen_prefs(config, other_work(tmp_path)))
    assert one.digest == many.digest
    explicit = config.model_copy(update={"pool": [f"sandbox:pool-{x}" for x in "abcd"]})
    assert gen_prefs(explicit, work).already


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"pool": ["ckpt/absent", "no such model"]},
        {"prompts": "absent.jsonl"},
        {"pool": ["sandbox:pool-a"], "rows": 1},
    ],
)
def test_a_missing_key_is_told_before_anything_else(work: Work, extra: dict[str, object]) -> None:
    for teacher, variable in (("gpt-4", "OPENAI_API_KEY"), ("claude-opus-4-1", "ANTHROPIC_API_KEY")):
        with pytest.raises(AuthError) as caught:
            gen_prefs(GenPrefsConfig.model_validate({"teacher": teacher, **extra}), work)
        assert caught.value.exit_code == 6
        assert variable in str(caught.value.hint)
    with pytest.raises(AuthError):
        gen_prefs(GenPrefsConfig(teacher="sandbox", pool=["no such model", "gpt-4"]), work)
    with pytest.raises(AuthError):
        gen_sft(GenSftConfig(teacher="gpt-4", prompts="absent.jsonl"), work)
    assert not work.store.names()


def test_with_a_key_the_next_missing_thing_is_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    with pytest.raises(UsageError, match="needs a teacher"):
        gen_prefs(GenPrefsConfig(), work)
    with pytest.raises(RefNotFound, match="absent"):
        gen_prefs(GenPrefsConfig(teacher="gpt-6.1-sol", prompts="absent.jsonl"), work)
    with pytest.raises(UsageError, match="one model"):
        gen_prefs(GenPrefsConfig(teacher="sandbox", pool=["sandbox:pool-a"]), work)


def test_more_prompts_than_the_sandbox_holds(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(n: int, seed: int) -> list[object]:
        raise ValueError(f"asked for {n} train tasks of the sandbox; it holds 7")

    monkeypatch.setattr("zephyrctl.sandbox.world.train_tasks", few)
    for run, config in ((gen_sft, GenSftConfig), (gen_prefs, GenPrefsConfig)):
        with pytest.raises(UsageError, match="it holds 7"):
            run(config(teacher="sandbox", rows=9), work)


def test_real_and_sandbox_data_never_mix_implicitly(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    gen_sft(GenSftConfig(teacher="sandbox", rows=6), work)
    dry = Work(work.store, Recorder(), dry_run=True)
    config = GenPrefsConfig(
        teacher="gpt-6.1-sol", pool=["gpt-6.1-sol", "gpt-6-luna"], may_drop=["temperature", "top_p"]
    )
    plan = gen_prefs(config, dry).plan
    assert plan["prompts"]["from"] == "zephyrctl/seeds"


def test_binarize_without_feedback_says_what_makes_it(work: Work) -> None:
    with pytest.raises(RefNotFound) as caught:
        binarize(BinarizeConfig(), work)
    assert "gen-prefs" in str(caught.value.hint)
    gen_sft(GenSftConfig(teacher="sandbox", rows=6), work)
    with pytest.raises(WrongKind):
        binarize(BinarizeConfig(feedback="sft-data"), work)


def test_prompts_by_path_with_a_bad_row(work: Work, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, *asking("Add 3 and 4."), '{"prompt": 7}', *asking("Add 2 and 2."))
    with pytest.raises(BadRow, match=r"prompts\.jsonl:2"):
        gen_prefs(GenPrefsConfig(teacher="sandbox", prompts=path), work)
    with pytest.raises(BadRow, match=r"prompts\.jsonl:2"):
        gen_sft(GenSftConfig(teacher="sandbox", prompts=path), work)
    assert not work.store.names()
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", prompts=path, on_bad_row="skip"), work))
    assert [row.prompt[0].content for _, row in feedback_rows(artifact)] == ["Add 3 and 4.", "Add 2 and 2."]
    assert artifact.manifest.counts["bad_rows"] == 1
    assert [r["where"] for r in artifact.rejects()] == [f"{path}:2"]


def test_duplicate_prompts_are_kept_once(work: Work, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, *asking("Add 3 and 4.", "Add 2 and 2.", "Add 3 and 4."))
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", prompts=path), work))
    assert artifact.manifest.counts["dropped"] == {"duplicate": 1}
    sft = made(gen_sft(GenSftConfig(teacher="sandbox", prompts=path, rounds=0), work))
    assert sft.manifest.counts["dropped"] == {"duplicate": 1}


def test_prompts_of_an_artifact_keep_their_split_and_a_part_holds_both(work: Work) -> None:
    sft = made(gen_sft(GenSftConfig(teacher="sandbox", rows=50, test_fraction=0.3), work))
    homes = {row.prompt_id: split for split, row in sft_rows(sft) if len(row.messages) == 2}
    config = GenPrefsConfig(teacher="sandbox", prompts="sft-data", rows=20, test_fraction=0.0)
    part = feedback_rows(made(gen_prefs(config, work)))
    assert {split for split, _ in part} == {"train", "test"}
    assert all(homes.get(row.prompt_id, split) == split for split, row in part)
    whole = feedback_rows(made(gen_prefs(config.model_copy(update={"rows": 35}), work)))
    assert {row.prompt_id for _, row in part} <= {row.prompt_id for _, row in whole}


def test_a_dry_run_writes_nothing(work: Work) -> None:
    dry = Work(work.store, Recorder(), dry_run=True)
    assert gen_sft(GenSftConfig(teacher="sandbox", rows=5), dry).ref is None
    assert gen_prefs(GenPrefsConfig(teacher="sandbox", rows=5), dry).ref is None
    assert not work.store.root.exists()
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=5), work)
    assert binarize(BinarizeConfig(), dry).ref is None
    assert work.store.names() == ["feedback"]


def silence(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    honest = sandbox_teacher.reply

    def reply(who: str, *args: object, **kwargs: object) -> str:
        return "" if who == role else honest(who, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sandbox_teacher, "reply", reply)


def test_too_many_failures_reject_the_outcome_and_the_higher_limit_is_free(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(monkeypatch, "pool-d")
    config = GenPrefsConfig(teacher="sandbox", rows=10)
    with pytest.raises(StageRejected) as caught:
        gen_prefs(config, work)
    assert "10 of 40 completions left out (10 empty)" in caught.value.message
    assert "max_failures=0.30" in str(caught.value.hint)
    assert not work.store.names()
    artifact = made(gen_prefs(config.model_copy(update={"max_failures": 0.3}), work))
    assert calls(artifact) == 0
    assert artifact.manifest.counts["completions"] == {"asked": 40, "kept": 30, "left_out": {"empty": 10}}
    assert {c.model[-1] for _, row in feedback_rows(artifact) for c in row.completions} == {"a", "b", "c"}


def test_gen_sft_rejects_an_outcome_of_silence(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch, "teacher")
    with pytest.raises(StageRejected, match="100% of the pairs failed"):
        gen_sft(GenSftConfig(teacher="sandbox", rows=5), work)
    with pytest.raises(StageRejected, match="no rows left"):
        gen_sft(GenSftConfig(teacher="sandbox", rows=5, max_failures=1.0), work)


def test_garbage_judgements_are_counted_and_never_become_ratings(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sandbox_teacher.reply
    asked = Counter()

    def reply(who: str, messages: list[dict[str, str]], *, draw: int, seed: int, temperature: float) -> str:
        text = honest(who, messages, draw=draw, seed=seed, temperature=temperature)
        judged = who == "teacher"
        asked["judge"] += judged
        # most are readable in the repair turn, which has the earlier reply before it; some stay garbage
        if judged and (seed % 25 == 0 if len(messages) > 1 else seed % 5 == 0):
            asked["garbage"] += 1
            return text.replace("Rating: ", "Rating: about ").replace("Overall score: ", "Score ")
        return text

    monkeypatch.setattr(sandbox_teacher, "reply", reply)
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", rows=30), work))
    counts = artifact.manifest.counts
    ratings = counts["ratings"]
    assert ratings["asked"] == ratings["rated"] + ratings["not_applicable"] + sum(
        ratings["unscored"].values()
    )
    assert ratings["asked"] == 30 * 4 * 5
    assert counts["judge_requests"] == 30 * 8 + counts["repairs"]["asked"]
    # two models with the same text make one request of their critiques
    assert counts["judge_requests"] >= asked["judge"] > asked["garbage"] > 20
    assert counts["repairs"]["asked"] > counts["repairs"]["mended"] > 20
    assert sum(ratings["unscored"].values()) > 0
    stored = [r.value for _, row in feedback_rows(artifact) for c in row.completions for r in c.ratings]
    stored += [c.overall for _, row in feedback_rows(artifact) for c in row.completions]
    assert sum(v is not None for v in stored) == ratings["rated"]


def test_an_aspect_nobody_rated_is_named(work: Work) -> None:
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=6, aspects=["honesty"]), work)
    with pytest.raises(UsageError) as caught:
        binarize(BinarizeConfig(score="aspect:wit"), work)
    assert "honesty" in str(caught.value.hint)
    assert work.store.names() == ["feedback"]


def test_all_ties_reject_the_outcome_with_counts(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = sandbox_teacher.reply

    def level(who: str, messages: list[dict[str, str]], **kwargs: object) -> str:
        text = honest(who, messages, **kwargs)  # type: ignore[arg-type]
        return "Fine.\n\nOverall score: 7" if "Overall score:" in text else text

    monkeypatch.setattr(sandbox_teacher, "reply", level)
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=10), work)
    with pytest.raises(StageRejected, match="10 all_tied"):
        binarize(BinarizeConfig(), work)
    assert work.store.names() == ["feedback"]
    kept = pairs_of(made(binarize(BinarizeConfig(ties="keep"), work)))
    assert kept
    assert all(pair.tie and pair.chosen != pair.rejected for _, pair in kept)


def test_real_prompts_go_through_unchanged(work: Work, parity_data: Path) -> None:
    path = str(parity_data / "ultrafeedback" / "pairs-200.jsonl.gz")
    artifact = made(gen_prefs(GenPrefsConfig(teacher="sandbox", prompts=path, rows=40), work))
    rows = feedback_rows(artifact)
    assert artifact.world == "sandbox"
    assert len(rows) + artifact.manifest.counts["dropped"].get("duplicate", 0) == 40
    assert all(c.overall is not None and len(c.ratings) == 4 for _, row in rows for c in row.completions)


def test_teachers_behind_an_api_take_the_same_way(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = asking(*(f"Add {i} and {2 * i + 1}." for i in range(6)))
    path = prompts_file(tmp_path, *lines)

    def script(times: int, body: Mapping[str, Any]) -> str:
        if body["model"] == "pool-d" and body["messages"][-1]["content"].startswith("Add 3 "):
            return "refusal"
        return "429" if times == 0 and body["messages"][-1]["content"].startswith("Add 5 ") else "ok"

    with LoopbackTeacher(script=script, headers={"Retry-After": "0"}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")
        sft = made(gen_sft(GenSftConfig(teacher="gpt-4", prompts=path, concurrency=4), work))
        pool = ["openai:pool-a", "anthropic:pool-c", "openai:pool-d?temperature=0.5"]
        config = GenPrefsConfig(teacher="gpt-4", pool=pool, concurrency=4, may_drop=["seed"])
        feedback = made(gen_prefs(config, work))
        billed = server.billed_calls
        again = made(gen_prefs(config, Work(work.store, again=True)))
        assert server.billed_calls == billed
    assert (sft.world, feedback.world, again.digest) == ("real", "real", feedback.digest)
    counts = feedback.manifest.counts
    assert counts["completions"]["left_out"] == {"refusal": 1}
    assert sum(counts["ratings"]["unscored"].values()) == 0
    prefs = made(binarize(BinarizeConfig(), work))
    assert prefs.world == "real"
    assert {p.judge for _, p in pairs_of(prefs)} == {"openai:gpt-4"}
    temperatures = {b["temperature"] for b in server.bodies if b["model"] == "pool-d"}
    assert temperatures == {0.5}
