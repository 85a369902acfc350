"""Every engine over two processes trains what one process trains, and what it saves loads anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine_shop import Shop, curve, engine_settings
from zephyrctl.artifacts.artifact import Artifact

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engines")]
ENGINES = ["ddp", "zero2", "zero3", "zero3-offload", "fsdp2"]


def apart(a: Artifact, b: Artifact) -> float:
    """The largest difference between two loss curves."""
    return max(abs(x - y) for x, y in zip(curve(a), curve(b), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_what_one_trains(
    engine: str, shop: Shop, alone: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    settings = engine_settings(engine, monkeypatch)
    for stage, run in (("sft", shop.sft), ("dpo", shop.dpo)):
        made = run(**settings)
        worst = apart(made, alone[stage])
        print(f"{engine} {stage}: loss curves differ by at most {worst:.2e} over {len(curve(made))} steps")
        assert worst <= 1e-4
        assert (made.manifest.model_extra or {})["engine"]["name"] == engine.removesuffix("-offload")
        mine, theirs = (AutoModelForCausalLM.from_pretrained(str(a.path)) for a in (made, alone[stage]))
        moved = max(
            float((p - q).abs().max()) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True)
        )
        assert moved < 5e-3


def test_the_step_is_the_same_whatever_shares_the_work(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.sft(max_steps=3, **engine_settings("ddp", monkeypatch))
    again = shop.sft(max_steps=3, num_processes=1, engine="single", micro_batch=8)
    assert again.ref == first.ref


@pytest.mark.parametrize(
    "settings", [{"packing": "best-fit", "batch_size": 2, "micro_batch": 1}, {"lora": True}]
)
def test_packs_and_adapters_over_two_processes(
    settings: dict[str, Any], shop: Shop, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = shop.sft(max_steps=8, out="two", **engine_settings("zero3", monkeypatch), **settings)
    one = shop.sft(max_steps=8, out="one", **settings)
    assert apart(two, one) <= 1e-4
    if "lora" in settings:
        body = json.loads((two.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        assert body["r"] == 16
