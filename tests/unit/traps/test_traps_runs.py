"""The bugs of other people's pipelines, one named test each, against our own stages: joins, resumes, keys.

Each docstring names the project that has the bug and what came out wrong there. Teachers are on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from trap_shop import ENDINGS, GRADES, made, on_prompt, pool_or_judge, prefs, prompts_file, rows_of, work_at

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import BudgetReached
from zephyrctl.judges.ultrafeedback import ASPECTS
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import Ask, Sampling
from zephyrctl.providers.calling import caller as calling
from zephyrctl.providers.hosted.anthropic import AnthropicProvider
from zephyrctl.providers.hosted.endpoints import Place, origin_of
from zephyrctl.providers.hosted.openai import OpenAIProvider
from zephyrctl.providers.hosted.responses import ResponsesProvider
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.records import FeedbackRow, Message, PreferenceRow, SftRow
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.run import run as binarize
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft
from zephyrctl.testing.answers import conversation
from zephyrctl.testing.teacher import LoopbackTeacher


def test_concat_misalignment(tmp_path: Path) -> None:
    """Tulu 3's parse_preferences.py: dropna, then concat by row number: after one failed row every later prompt had
    another prompt's pair."""
    prompts = [f"prompt {n}" for n in range(8)]
    prompts[5] = "a tied prompt"
    path = prompts_file(tmp_path / "p.jsonl", prompts)
    with LoopbackTeacher(script=on_prompt(2, "refusal"), answer=pool_or_judge) as teacher:
        work = work_at(tmp_path, teacher)
        feedback = made(gen_prefs(prefs(path), work))
    assert [row.prompt[0].content for row in rows_of(feedback, FeedbackRow)] == [*prompts[:2], *prompts[3:]]
    pairs = rows_of(made(binarize(BinarizeConfig(max_dropped=0.9), work)), PreferenceRow)
    assert [pair.prompt[0].content for pair in pairs] == [*prompts[:2], *prompts[3:5], *prompts[6:]]
    for pair in pairs:
        asked = pair.prompt[0].content
        assert pair.chosen[0].content == f"pool-a on <{asked}> {ENDINGS['pool-a']}"
        loser = pair.rejected[0].content.split()[0]
        assert pair.rejected_model == f"box:{loser}"
        assert pair.rejected[0].content == f"{loser} on <{asked}> {ENDINGS[loser]}"
        assert (pair.score_chosen, pair.score_rejected) == (10.0, 2.0 * GRADES[loser])


def test_ratings_joined_by_position(tmp_path: Path) -> None:
    """distilabel and UltraFeedback bind the n-th rating to the n-th text; here one model's answer is missing, the
    others are shown in another order for each aspect, and everybody keeps the ratings of their own."""
    path = prompts_file(tmp_path / "p.jsonl", [f"prompt {n}" for n in range(6)])
    with LoopbackTeacher(script=on_prompt(1, "refusal", "pool-b"), answer=pool_or_judge) as teacher:
        feedback = made(gen_prefs(prefs(path), work_at(tmp_path, teacher)))
    places = set()
    for row in rows_of(feedback, FeedbackRow):
        assert len(row.completions) == (2 if row.prompt[0].content == "prompt 1" else 3)
        for completion in row.completions:
            name = completion.model.removeprefix("box:")
            assert completion.text.startswith(f"{name} on <{row.prompt[0].content}>")
            assert completion.text.endswith(ENDINGS[name]), "rstrip charset"
            assert {r.aspect: r.value for r in completion.ratings} == dict.fromkeys(ASPECTS, GRADES[name])
            assert completion.overall == 2 * GRADES[name]
            places |= {(name, rating.position) for rating in completion.ratings}
    assert len(places) == 9


def test_unparsable_judge_is_missing_and_the_run_goes_on(tmp_path: Path) -> None:
    """UltraFeedback asked ten times at temperature 0 and left the aspect out; Tulu 3 wrote a 1. Here one repair, then
    missing with a reason, counted."""

    def hazy(body: Mapping[str, Any]) -> str:
        said = pool_or_judge(body)
        return said.replace("Rating: ", "Rating: about ") if str(body["model"]) == "judge" else said

    path = prompts_file(tmp_path / "p.jsonl", ["prompt 0", "prompt 1"])
    with LoopbackTeacher(answer=hazy) as teacher:
        feedback = made(gen_prefs(prefs(path), work_at(tmp_path, teacher)))
        asked = [body for body in teacher.bodies if body["model"] == "judge"]
    for row in rows_of(feedback, FeedbackRow):
        assert all(rating.value is None and rating.reason for c in row.completions for rating in c.ratings)
        assert [c.overall for c in row.completions] == [10.0, 6.0, 4.0]
    counts = feedback.manifest.counts["ratings"]
    assert (counts["rated"], sum(counts["unscored"].values())) == (6, 24)
    assert len(asked) == 2 * (3 + 4 + 4), "three critiques, four aspects, one further turn for each of those"


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_positional_batch_join(vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """distilabel: results of a batch zipped with its inputs: a row that expired moved all later answers up by one."""

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0.001)

    def rows(times: int, body: Mapping[str, Any]) -> str:
        odd = {"prompt 3": "missing", "prompt 5": "expired", "prompt 7": "duplicate", "prompt 9": "unknown"}
        return odd.get(conversation(body)[-1]["content"], "ok")

    build = calling.Switchboard
    monkeypatch.setattr(calling, "Switchboard", lambda *a, **more: build(*a, **{**more, "sleep": at_once}))
    prompts = [f"prompt {n}" for n in range(24)]
    path = prompts_file(tmp_path / "p.jsonl", prompts)
    teachers = {"openai": "gpt-4o-mini", "anthropic": "claude-opus-4-1"}
    with LoopbackTeacher(
        answer=lambda body: f"on <{conversation(body)[-1]['content']}>", batch_modes=rows, batch_shuffled=True
    ) as teacher:
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.openai_url)
        monkeypatch.setenv("ANTHROPIC_BASE_URL", teacher.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
        config = GenSftConfig(
            teacher=teachers[vendor], prompts=[path], rounds=0, mode="batch", max_usd=100, price="in=1,out=1",
            may_drop=["temperature", "top_p", "seed"],
        )  # fmt: skip
        artifact = made(gen_sft(config, work_at(tmp_path)))
        assert [len(batch.rows) for batch in teacher.batches] == [24]
        assert teacher.requests == 2, "the missing and the expired one are asked online"
    found = {row.messages[0].content: row.messages[1].content for row in rows_of(artifact, SftRow)}
    assert found == {prompt: f"on <{prompt}>" for prompt in prompts}


def replies(store: Store) -> dict[str, str]:
    """What the ledger holds: keys and the hashes of their replies."""
    with Ledger.open(store.ledger_path) as ledger:
        return dict(ledger.read(lambda c: c.execute("SELECT key, sha256 FROM response").fetchall()))


def test_resume_with_w(tmp_path: Path) -> None:
    """Self-Instruct opened its output with mode "w" on resume and wrote old rows again one by one: a second kill lost
    what was paid for."""
    path = prompts_file(tmp_path / "p.jsonl", [f"Add {n} and {n + 3}." for n in range(10, 30)])
    config = GenSftConfig(
        teacher="box:teacher", method="self-instruct", rows=20, prompts=[path], max_tokens=300, max_usd=1000
    )
    with LoopbackTeacher() as teacher:
        whole = made(gen_sft(config, work_at(tmp_path / "whole", teacher)))
        cost = sum(one["cost_usd"] for one in whole.manifest.teachers)
        teacher.billed.clear()
        work, before = work_at(tmp_path / "stopped", teacher), dict[str, str]()
        for share in (0.3, 0.6):
            with pytest.raises(BudgetReached):
                gen_sft(config.model_copy(update={"max_usd": share * cost}), work)
            now = replies(work.store)
            assert before.items() < now.items()
            before = now
        resumed = made(gen_sft(config, work))
        assert before.items() < replies(work.store).items()
        assert max(teacher.billed.values()) == 1
    assert resumed.digest == whole.digest


def test_capitalize_in_self_instruct(tmp_path: Path) -> None:
    """Self-Instruct's bootstrap_instructions.py: `.capitalize()` wrote "nasa" and "python" into its 52,000 tasks."""
    tasks = [
        "Explain to a child what NASA does and why.",
        "Compare the Python and Go languages for CLI tools.",
    ]

    def teacher_of(body: Mapping[str, Any]) -> str:
        asked = conversation(body)[-1]["content"]
        if "Think of" in asked:
            return "\n".join(f"{n}. {task}" for n, task in enumerate(tasks, 9))
        if "yes or no" in asked:
            return "no"
        return "[[INPUT]]\nnone\n[[OUTPUT]]\nNASA likes McDonald's\n[[END]]"

    path = prompts_file(tmp_path / "p.jsonl", [f"Add {n} and {n + 3}." for n in range(10, 20)])
    config = GenSftConfig(
        teacher="box:t", method="self-instruct", rows=2, prompts=[path], max_usd=1000, max_failures=1.0
    )
    with LoopbackTeacher(answer=teacher_of) as teacher:
        rows = rows_of(made(gen_sft(config, work_at(tmp_path, teacher))), SftRow)
    assert sorted(row.messages[0].content for row in rows) == sorted(tasks)
    assert {row.messages[1].content for row in rows} == {"NASA likes McDonald's"}


PLACE = Place(("http://127.0.0.1:9",), origin_of("http://127.0.0.1:9"), "NO_KEY")
PROVIDERS = (
    *(kind("some-model", PLACE) for kind in (OpenAIProvider, ResponsesProvider, AnthropicProvider)),
    LocalProvider(ModelSource(Path("m"), "sha256:0", "m@v1", "real", None)),
    SandboxProvider("teacher"),
)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: type(p).__name__)
def test_system_prompt_missing_from_key(provider: Any) -> None:
    """curator 0.1.31: another system_prompt hit the old cache, so its rows were answers to something else."""

    def key(*system: str, draw: int = 0) -> str:
        said = (
            *(Message(role="system", content=text) for text in system),
            Message(role="user", content="Hi."),
        )
        body = provider.wire(Ask(said, Sampling(max_tokens=9, temperature=1.0), draw))
        return Ledger.key(
            provider=provider.kind, origin=provider.origin, endpoint=provider.endpoint, body=body, draw=draw
        )

    assert len({key(), key("Be brief."), key("Be long."), key("Be brief.", draw=1)}) == 4
    assert key("Be brief.") == key("Be brief.")


def test_system_prompt_missing_from_key_of_a_run(tmp_path: Path) -> None:
    """curator 0.1.31: the same, through a whole stage and its ledger: the second teacher was never asked."""
    lines = [
        [{"role": "system", "content": who}, {"role": "user", "content": "Who are you?"}]
        for who in ("You are A.", "You are B.")
    ]
    for line in lines:
        (tmp_path / "p.jsonl").write_text(json.dumps({"messages": line}) + "\n")
        with LoopbackTeacher(answer=lambda body: conversation(body)[0]["content"]) as teacher:
            config = GenSftConfig(teacher="box:t", prompts=[str(tmp_path / "p.jsonl")], rounds=0, max_usd=1)
            (row,) = rows_of(made(gen_sft(config, work_at(tmp_path, teacher))), SftRow)
            assert teacher.billed_calls == 1
        assert row.messages[-1].content == line[0]["content"]
