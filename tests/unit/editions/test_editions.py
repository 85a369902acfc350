from importlib import import_module
from pathlib import Path

import pytest

from zephyrctl.config import STAGES, Layer, build
from zephyrctl.editions import load as editions
from zephyrctl.editions.resolve import resolve
from zephyrctl.errors import ConfigError
from zephyrctl.project import load_project
from zephyrctl.stages.dpo.config import DpoConfig
from zephyrctl.stages.sft.config import SftConfig

CONFIGS = {
    "gen-sft": "gen_sft:GenSftConfig",
    "sft": "sft:SftConfig",
    "gen-prefs": "gen_prefs:GenPrefsConfig",
    "binarize": "binarize:BinarizeConfig",
    "dpo": "dpo:DpoConfig",
    "eval": "eval:EvalConfig",
}


@pytest.mark.parametrize("name", editions.names())
def test_every_section_of_every_edition_is_accepted(name: str) -> None:
    edition = editions.load(name)
    assert set(edition.sections) <= set(STAGES)
    for stage, values in edition.sections.items():
        room, _, cls = CONFIGS[stage].partition(":")
        config_class = getattr(import_module(f"zephyrctl.stages.{room}.config"), cls)
        needed = {"teacher": "sandbox", "model": "sandbox"}
        known = {k: v for k, v in needed.items() if k in config_class.model_fields}
        build(config_class, [Layer("test", known), Layer(name, values)])


def test_the_paper() -> None:
    sft = resolve(SftConfig, {}).config
    assert (sft.lr, sft.scheduler, sft.warmup, sft.batch_size, sft.max_length) == (
        2e-5,
        "cosine",
        0.1,
        512,
        2048,
    )
    dpo = resolve(DpoConfig, {}).config
    assert (dpo.lr, dpo.scheduler, dpo.warmup, dpo.batch_size, dpo.beta, dpo.epochs) == (
        5e-7,
        "linear",
        0.1,
        32,
        0.1,
        3,
    )
    assert sft.weight_decay == dpo.weight_decay == 0.0


def test_a_changed_edition_says_so() -> None:
    assert resolve(DpoConfig, {}).label == "zephyr-7b/paper"
    assert resolve(DpoConfig, {"lr": 1e-6, "beta": 0.1}).label == "zephyr-7b/paper + lr"


def test_precedence(tmp_path: Path) -> None:
    project = tmp_path / "zephyrctl.yaml"
    project.write_text("dpo:\n  lr: 1.0\n  beta: 0.7\n")
    own = tmp_path / "run.yaml"
    own.write_text("dpo:\n  beta: 0.9\n")
    over_default = resolve(DpoConfig, {}, project=load_project(project)).config
    assert (over_default.lr, over_default.beta) == (1.0, 0.7)
    named = resolve(DpoConfig, {}, project=load_project(project), edition="zephyr-7b/paper").config
    assert (named.lr, named.beta) == (5e-7, 0.1)
    assert resolve(DpoConfig, {}, project=load_project(project), config_file=own).config.beta == 0.9
    assert (
        resolve(DpoConfig, {"beta": 0.2}, project=load_project(project), config_file=own).config.beta == 0.2
    )


def test_edition_named_in_the_config_file(tmp_path: Path) -> None:
    own = tmp_path / "run.yaml"
    own.write_text("edition: sandbox\nlr: 0.5\n")
    found = resolve(DpoConfig, {}, config_file=own)
    assert found.edition == "sandbox"
    assert found.config.lr == 0.5


def test_sandbox_model_takes_the_sandbox_edition_unless_one_is_named() -> None:
    assert resolve(SftConfig, {}, sandbox=True).edition == "sandbox"
    assert resolve(SftConfig, {}, sandbox=True, edition="zephyr-7b/paper").edition == "zephyr-7b/paper"


def test_unknown_edition_and_section(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        editions.load("zephyr-7b/papr")
    assert caught.value.hint == "did you mean 'zephyr-7b/paper'?"
    own = tmp_path / "run.yaml"
    own.write_text("dpo: {}\nsfr: {}\n")
    with pytest.raises(ConfigError, match="unknown key 'sfr'"):
        resolve(DpoConfig, {}, config_file=own)
