"""The project file and the user's file: what they may say, which wins, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.errors import ConfigError
from zephyrctl.project import EndpointSection, load_project, user_file

FULL = """
edition: sandbox
store: shelf
max_usd: 12.5
concurrency: 64
rpm: 500
endpoints:
  box:
    base_url: [http://10.0.0.5:8000/v1, http://10.0.0.6:8000/v1]
    key_env: BOX_KEY
    price: {in: 0, out: 0}
    accepts: {seed: true}
  far: {base_url: "https://example.org/v1", api: anthropic}
models:
  gpt-7: {like: gpt-6-sol, price: {in: 1, out: 5, cached: 0.1}}
vllm: {command: [/opt/vllm/bin/vllm], tensor_parallel: 2}
gen-sft: {rounds: 2}
"""


def test_everything_a_project_can_say(tmp_path: Path) -> None:
    path = tmp_path / "zephyrctl.yaml"
    path.write_text(FULL)
    project = load_project(path, tmp_path / "no-such-file")
    assert project.endpoints["box"].base_url == ["http://10.0.0.5:8000/v1", "http://10.0.0.6:8000/v1"]
    assert project.endpoints["far"].base_url == ["https://example.org/v1"]
    price = project.models["gpt-7"].price
    assert price is not None
    assert price.price("here").cached_input == 0.1
    assert project.vllm is not None
    assert project.vllm.tensor_parallel == 2
    assert project.stages == {"gen-sft": {"rounds": 2}}
    assert project.max_usd == 12.5


def test_no_file_is_an_empty_project(tmp_path: Path) -> None:
    project = load_project(tmp_path / "none.yaml", tmp_path / "none-either.yaml")
    assert project.endpoints == {}
    assert project.max_usd is None


def test_the_users_file_stands_under_the_projects(tmp_path: Path) -> None:
    user, path = tmp_path / "user.yaml", tmp_path / "zephyrctl.yaml"
    user.write_text(
        "max_usd: 3\nconcurrency: 8\nendpoints: {a: {base_url: http://a/v1}, b: {base_url: http://b/v1}}\n"
    )
    path.write_text("concurrency: 9\nendpoints: {b: {base_url: http://other/v1}}\n")
    project = load_project(path, user)
    assert (project.max_usd, project.concurrency) == (3, 9)
    assert project.endpoints["a"] == EndpointSection(base_url=["http://a/v1"])
    assert project.endpoints["b"].base_url == ["http://other/v1"]


@pytest.mark.parametrize("text", ["edition: sandbox\n", "gen-sft: {rounds: 2}\n"])
def test_the_users_file_holds_no_knob_that_changes_a_result(tmp_path: Path, text: str) -> None:
    user = tmp_path / "user.yaml"
    user.write_text(text)
    with pytest.raises(ConfigError, match=r"user\.yaml"):
        load_project(tmp_path / "none.yaml", user)


def test_the_environment_sets_the_projects_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEPHYRCTL_MAX_USD", "0.75")
    assert load_project(tmp_path / "none.yaml", tmp_path / "none.yaml").max_usd == 0.75
    monkeypatch.setenv("ZEPHYRCTL_MAX_USD", "much")
    with pytest.raises(ConfigError, match="max_usd"):
        load_project(tmp_path / "none.yaml", tmp_path / "none.yaml")


def test_where_the_users_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_file() == tmp_path / "zephyrctl" / "config.yaml"
    monkeypatch.setenv("ZEPHYRCTL_CONFIG", str(tmp_path / "mine.yaml"))
    assert user_file() == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("endpiont: {}\n", "did you mean 'endpoints'"),
        ("endpoints: {box: {url: http://x}}\n", "endpoints.box.url"),
        ("endpoints: {box: {base_url: http://x, price: {in: -1, out: 2}}}\n", "endpoints.box.price"),
        ("max_usd: -2\n", "max_usd"),
        ("gen-sft: 3\n", "gen-sft"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "zephyrctl.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_project(path, tmp_path / "none.yaml")
    assert said in f"{caught.value.message} {caught.value.hint}"
    assert "zephyrctl.yaml" in caught.value.message
