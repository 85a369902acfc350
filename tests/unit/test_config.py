from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyrctl import config
from zephyrctl.errors import ConfigError, RefNotFound


class Toy(config.StageConfig):
    stage: ClassVar[str] = "sft"

    lr: float = 1e-5
    data: str | None = config.reads(None)
    micro_batch: int = config.runtime(8)


def test_roles() -> None:
    assert Toy.fields_with_role("identity") == ["seed", "on_bad_row", "lr"]
    assert Toy.fields_with_role("input") == ["data"]
    assert set(Toy.fields_with_role("runtime")) == {"out", "note", "micro_batch"}


def test_step_key_follows_identity_and_inputs_only() -> None:
    base = config.step_key(Toy(), {"data": "sha256:a"})
    assert (
        config.step_key(Toy(micro_batch=1, note="x", out="other", data="name@v1"), {"data": "sha256:a"})
        == base
    )
    assert config.step_key(Toy(lr=2e-5), {"data": "sha256:a"}) != base
    assert config.step_key(Toy(seed=1), {"data": "sha256:a"}) != base
    assert config.step_key(Toy(), {"data": "sha256:b"}) != base


def test_later_layers_win_and_none_says_nothing() -> None:
    built = config.build(
        Toy,
        [
            config.Layer("edition", {"lr": 1.0, "seed": 7}),
            config.Layer("the command line", {"lr": 2.0, "seed": None}),
        ],
    )
    assert (built.config.lr, built.config.seed) == (2.0, 7)
    assert built.origins["lr"] == "the command line"
    assert built.origins["seed"] == "edition"
    assert built.origins["micro_batch"] == "default"


def test_unknown_key_names_origin_and_neighbour() -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(Toy, [config.Layer("run.yaml", {"micro_bach": 1})])
    assert "unknown key 'micro_bach' in run.yaml (section sft)" in caught.value.message
    assert caught.value.hint == "did you mean 'micro_batch'?"


def test_bad_value_names_key_value_and_origin() -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(Toy, [config.Layer("run.yaml", {"lr": "fast"})])
    assert caught.value.message.startswith("sft: lr: ")
    assert "'fast'" in caught.value.message
    assert "run.yaml" in caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-7", 5e-7),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("", ""),
        ("2031-02-03", "2031-02-03"),
        ("2031-02-33", "2031-02-33"),
        ("gpt-4", "gpt-4"),
        ("[1, 2]", [1, 2]),
        ("a: b: c", "a: b: c"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    assert config.scalar(text) == value


def test_sets() -> None:
    assert config.parse_sets(["lr=5e-7", "max-length=3"]) == {"lr": 5e-7, "max_length": 3}
    assert config.parse_sets(["system=", "system_=null"]) == {"system": "", "system_": config.UNSET}
    with pytest.raises(ConfigError, match="expected key=value"):
        config.parse_sets(["lr"])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_typed_as_repr_is_read_back(value: float) -> None:
    assert config.scalar(repr(value)) == value


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_canonical_ignores_order(values: dict[str, object]) -> None:
    backwards = dict(reversed(list(values.items())))
    assert config.canonical(values) == config.canonical(backwards)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("a: &x 1\nb: *x", "aliases"),
        ("!!python/object:os.x {}", "YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        config.load_yaml(path)


def test_a_typed_null_leaves_a_setting_open_and_nothing_else_does() -> None:
    layers = [config.Layer("edition x", {"note": "a", "lr": 0.5}), config.Layer("run.yaml", {"note": None})]
    assert config.build(Toy, layers).config.note == "a"
    open_note = config.build(Toy, [*layers, config.Layer("the command line", {"note": config.UNSET})])
    assert open_note.config.note is None
    assert open_note.origins["note"] == "the command line"
    with pytest.raises(ConfigError, match="lr cannot be null"):
        config.build(Toy, [*layers, config.Layer("the command line", {"lr": config.UNSET})])


def test_files_that_are_no_text_or_break_the_scanner(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for body in (b"\xff\xfe", b"{& : x"):
        path.write_bytes(body)
        with pytest.raises(ConfigError, match="not valid YAML"):
            config.load_yaml(path)
    path.write_text("template_date: 2031-02-03\n")
    assert config.load_yaml(path) == {"template_date": "2031-02-03"}


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound):
        config.load_yaml(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert config.load_yaml(tmp_path / "empty.yaml") == {}
