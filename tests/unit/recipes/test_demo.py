from types import SimpleNamespace

import pytest

from zephyrctl.artifacts.ref import Ref
from zephyrctl.events import Note, Recorder, Table
from zephyrctl.recipes import demo, table3
from zephyrctl.recipes.chain import Chain
from zephyrctl.records import Verdict

LEVELS = {"base": 2.0, "dsft-1": 5.0, "dsft-2": 5.0, "ddpo-only": 2.0, "ddpo-dsft": 7.0}


def verdicts(model):
    level = LEVELS["base" if model == "sandbox" else model.split("@")[0].split(".")[0]]
    rows = []
    for place in range(40):
        body = {"prompt_id": f"p{place}", "turn": 1, "family": "sort", "question": "q", "answer": "a"}
        for decoding in ("greedy", "sampled"):
            graded = {"suite": "judged", "score": level + place % 3, "judge": "sandbox:judge"}
            rows.append(Verdict(**body, decoding=decoding, **graded))
            right = float(place % 10 < level)
            rows.append(Verdict(**body, decoding=decoding, suite="exact", score=right, judge="exact"))
            for order in ("AB", "BA"):
                duel = {"suite": "win_rate", "order": order, "score": 0.5, "judge": "sandbox:judge"}
                rows.append(Verdict(**body, decoding=decoding, **duel))
    return rows


@pytest.fixture
def steps(monkeypatch):
    """Replaces the stages by a list of what was asked of them."""
    asked = []

    def step(self, stage, hint, **typed):
        settings = {**self.overrides.get(stage, {}), **typed}
        default = {"gen-sft": "sft-data", "gen-prefs": "feedback", "binarize": "prefs"}
        name = typed.get("out") or default.get(stage) or "eval-" + typed["model"].split("@")[0]
        asked.append((stage, name, settings))
        self.made[name] = f"{name}@v1"
        if stage == "binarize":
            self.made["prefs-best"] = "prefs-best@v1"
        rows = [("", "test", row) for row in verdicts(typed["model"])] if stage == "eval" else []
        return SimpleNamespace(ref=Ref(name, 1), rows=lambda: iter(rows))

    def side_by_side(chain, models):
        asked.append(("preview", "", dict(models)))

    monkeypatch.setattr(Chain, "step", step)
    monkeypatch.setattr(demo, "side_by_side", side_by_side)
    return asked


def test_one_seed_makes_the_papers_systems_in_order(steps, tmp_path):
    told = Recorder()
    result = demo.run_demo(tmp_path / "artifacts", emit=told)
    assert [(stage, name) for stage, name, _ in steps] == [
        ("gen-sft", "sft-data"),
        ("gen-prefs", "feedback"),
        ("binarize", "prefs"),
        ("sft", "dsft-1"),
        ("dpo", "ddpo-dsft"),
        ("preview", ""),
        ("sft", "dsft-2"),
        ("dpo", "ddpo-only"),
        ("eval", "eval-sandbox"),
        ("eval", "eval-dsft-1"),
        ("eval", "eval-ddpo-dsft"),
        ("eval", "eval-dsft-2"),
        ("eval", "eval-ddpo-only"),
    ]
    by_name = {name: settings for _, name, settings in steps}
    assert by_name["dsft-1"]["init"] == by_name["ddpo-only"]["init"] == "sandbox"
    assert by_name["ddpo-dsft"]["init"] == by_name["dsft-2"]["init"] == "dsft-1@v1"
    assert by_name["dsft-2"]["data"] == ["prefs-best@v1"]
    assert by_name["ddpo-dsft"]["data"] == by_name["ddpo-only"]["data"] == ["prefs@v1"]
    assert list(by_name[""]) == [table3.BASE, table3.DSFT_1, table3.DPO_ON_SFT]
    assert result.ref == "ddpo-dsft@v1"
    assert result.document["ref"] == result.ref


def test_the_table_and_the_sentences_are_told_and_labelled(steps, tmp_path):
    told = Recorder()
    result = demo.run_demo(tmp_path / "artifacts", emit=told)
    tables = [event for event in told.events if isinstance(event, Table)]
    assert [row[0] for row in tables[0].rows] == list(table3.SYSTEMS)
    assert "not language models" in tables[0].title
    words = [event.text for event in told.events if isinstance(event, Note)]
    assert any("dDPO + dSFT beats dSFT-1 on judged score by 2.00" in w and "resolved" in w for w in words)
    assert any(
        "dSFT-2 and dSFT-1 differ on judged score by +0.00" in w and "not resolved" in w for w in words
    )
    assert any("zephyrctl demo --seeds 3" in w for w in words)
    resolved = {(c["one"], c["other"]): c["resolved"] for c in result.document["comparisons"]}
    assert resolved[table3.DPO_ON_SFT, table3.DSFT_1]
    assert set(result.document["table3"]) == set(table3.SYSTEMS)


def test_more_seeds_add_models_and_keep_the_first_names(steps, tmp_path):
    result = demo.run_demo(tmp_path / "artifacts", seeds=3)
    trained = {name: settings for stage, name, settings in steps if stage in ("sft", "dpo")}
    assert len(trained) == 12
    assert {"dsft-1", "dsft-1.s2", "dsft-1.s3"} <= set(trained)
    assert [trained[n]["seed"] for n in ("dsft-1", "dsft-1.s2", "dsft-1.s3")] == [42, 43, 44]
    assert trained["ddpo-dsft.s2"]["init"] == "dsft-1.s2@v1"
    assert sum(stage == "preview" for stage, _, _ in steps) == 1
    assert sum(stage == "eval" for stage, _, _ in steps) == 13
    (first, *_) = result.document["comparisons"]
    assert first["difference"]["seeds"] == 3
    assert "x 3 training seeds" in first["sentence"]


def test_fast_asks_for_little_of_every_stage(steps, tmp_path):
    demo.run_demo(tmp_path / "artifacts", fast=True)
    for stage, _, settings in steps:
        for key, value in demo.FAST.get(stage, {}).items():
            assert settings[key] == value
    assert set(demo.FAST) == {"gen-sft", "sft", "gen-prefs", "dpo", "eval"}
