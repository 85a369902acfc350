from importlib import import_module
from pathlib import Path

import pytest

from zephyrctl.config import STAGES, Layer, StageConfig, build
from zephyrctl.editions import load as editions
from zephyrctl.editions.resolve import named_edition, resolve
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


TRAINING = [name for name in editions.names() if name not in ("sandbox", "zephyr-h4")]
DECIDED = {
    "seed", "default_template", "system", "bos", "max_length", "batch_size", "epochs", "lr", "scheduler", "warmup",
    "optimizer", "weight_decay", "max_grad_norm", "dtype", "lora", "quantize",
}  # fmt: skip
OF_STAGE = {
    "sft": {"init", "packing", "loss_on"},
    "dpo": {
        "beta", "loss", "label_smoothing", "nll_weight", "length_normalised", "max_prompt_length", "answer_room",
        "close", "header_in_answer",
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("name", TRAINING)
def test_every_decision_is_written_out(name: str, stage: str) -> None:
    section = editions.load(name).sections[stage]
    assert set(section) >= DECIDED | OF_STAGE[stage]
    if section["optimizer"] != "rmsprop":
        assert set(section) >= {"adam_beta1", "adam_beta2", "adam_epsilon"}
    if section["lora"]:
        assert set(section) >= {"lora_r", "lora_alpha", "lora_dropout"}
    if stage == "sft" and section["packing"] != "wrapped":  # which cuts nothing
        assert "truncation" in section
    configs: dict[str, type[StageConfig]] = {"sft": SftConfig, "dpo": DpoConfig}
    runtime = set(configs[stage].fields_with_role("runtime"))
    assert not runtime & set(section)


@pytest.mark.parametrize("name", TRAINING)
def test_an_edition_as_it_is_carries_its_plain_name(name: str) -> None:
    assert resolve(SftConfig, {}, edition=name).label == resolve(DpoConfig, {}, edition=name).label == name


@pytest.mark.parametrize("name", editions.names())
def test_an_edition_tells_its_origin(name: str) -> None:
    edition = editions.load(name)
    assert len(edition.brief) <= 90
    assert "\n" not in edition.brief
    assert len(edition.about) > len(edition.brief)
    if name in TRAINING:
        assert "not repeated" in edition.about or "cannot" in edition.about


# batch of SFT, its warm-up; batch, epochs, beta, schedule and optimiser of DPO
PUBLISHED = {
    "zephyr-7b/paper": (512, 0.1, 32, 3, 0.1, "linear", "adamw"),
    "zephyr-7b/handbook-0.2": (512, 0.0, 64, 3, 0.1, "linear", "rmsprop"),
    "zephyr-7b/handbook-0.3": (128, 0.1, 128, 1, 0.01, "cosine", "adamw"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers(name: str) -> None:
    sft, dpo = resolve(SftConfig, {}, edition=name).config, resolve(DpoConfig, {}, edition=name).config
    found = (sft.batch_size, sft.warmup, dpo.batch_size, dpo.epochs, dpo.beta, dpo.scheduler, dpo.optimizer)
    assert found == PUBLISHED[name]
    assert (sft.lr, sft.max_length, sft.epochs, sft.scheduler) == (2e-5, 2048, 1, "cosine")
    assert (dpo.lr, dpo.max_length, dpo.max_prompt_length, dpo.warmup) == (5e-7, 1024, 512, 0.1)
    assert sft.system == dpo.system == ""


def test_the_edition_where_none_is_named(tmp_path: Path) -> None:
    assert resolve(DpoConfig, {}, fallback="small").edition == "small"
    assert resolve(DpoConfig, {}, fallback="small", edition="sandbox").edition == "sandbox"
    project = tmp_path / "zephyrctl.yaml"
    project.write_text("edition: one-gpu\ndpo:\n  beta: 0.7\n")
    found = resolve(DpoConfig, {}, fallback="small", project=load_project(project))
    assert found.edition == "one-gpu"
    project.write_text("dpo:\n  beta: 0.7\n")
    found = resolve(DpoConfig, {}, fallback="small", project=load_project(project))
    assert (found.label, found.origins["beta"]) == ("small + beta", str(project))


def test_which_edition_is_named(tmp_path: Path) -> None:
    own, project = tmp_path / "run.yaml", tmp_path / "zephyrctl.yaml"
    own.write_text("edition: sandbox\nlr: 0.5\n")
    project.write_text("edition: one-gpu\n")
    assert named_edition(DpoConfig, None, None, load_project(tmp_path / "none.yaml")) is None
    assert named_edition(DpoConfig, None, None, load_project(project)) == "one-gpu"
    assert named_edition(DpoConfig, own, None, load_project(project)) == "sandbox"
    assert named_edition(DpoConfig, own, "small", load_project(project)) == "small"
