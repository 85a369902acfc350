from pathlib import Path
from types import SimpleNamespace

import pytest

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.ref import Ref
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.modelspec import ModelSpec, parse_model
from zephyrctl.stages.eval import subjects
from zephyrctl.stages.eval.subjects import Subject, find_baseline, find_subject


class FakeStore:
    """Models by ref, each with the ref it was trained from."""

    def __init__(self, parents):
        self.artifacts = {ref: artifact(ref, parent) for ref, parent in parents.items()}

    def resolve(self, ref):
        if ref not in self.artifacts:
            raise RefNotFound(f"no {ref}")
        return self.artifacts[ref]


def artifact(ref, parent):
    name, _, version = ref.partition("@v")
    inputs = [InputRef(role="data", ref="sft-data@v1", digest="d", kind="sft")]
    if parent is not None:
        inputs.append(InputRef(role="init", ref=parent, digest="i", kind="model"))
    return SimpleNamespace(
        ref=Ref(name, int(version)), digest=f"digest of {ref}", manifest=SimpleNamespace(inputs=inputs)
    )


def subject(store, ref, world="sandbox"):
    found = store.artifacts.get(ref)
    source = ModelSource(Path("somewhere") / ref, f"digest of {ref}", ref, world, found)
    return Subject(ModelSpec("artifact", ref, ref), source)


@pytest.fixture
def named(monkeypatch):
    """Makes `find_subject` answer with the name it was asked for."""
    monkeypatch.setattr(subjects, "find_subject", lambda store, text: text)


@pytest.mark.usefixtures("named")
def test_the_baseline_is_the_root_of_the_lineage():
    store = FakeStore({"dpo-e3@v1": "sft-e1@v2", "sft-e1@v2": "./mistral"})
    assert find_baseline(store, subject(store, "dpo-e3@v1", "real"), None) == "./mistral"
    assert find_baseline(store, subject(store, "dpo-e3@v1", "real"), "other@v1") == "other@v1"


@pytest.mark.usefixtures("named")
def test_a_sandbox_model_without_a_past_is_compared_with_the_shipped_base():
    store = FakeStore({"grown@v1": None})
    assert find_baseline(store, subject(store, "grown@v1"), None) == "sandbox"
    assert find_baseline(store, find_like("sandbox:pool-a"), None) == "sandbox"


def find_like(text):
    return Subject(parse_model(text), None)


@pytest.mark.usefixtures("named")
def test_a_model_without_a_known_base_asks_for_one():
    store = FakeStore({"mine@v1": None})
    with pytest.raises(UsageError, match="which base model") as caught:
        find_baseline(store, subject(store, "mine@v1", "real"), None)
    assert "baseline=" in caught.value.hint


def test_a_base_that_is_gone_is_named(monkeypatch):
    def gone(store, text):
        raise RefNotFound(f"no such model folder: {text}")

    monkeypatch.setattr(subjects, "find_subject", gone)
    store = FakeStore({"sft-e1@v1": "./deleted"})
    with pytest.raises(RefNotFound, match=r"sft-e1@v1 comes from \./deleted") as caught:
        find_baseline(store, subject(store, "sft-e1@v1", "real"), None)
    assert "baseline=" in caught.value.hint


def test_names_for_the_eval_artifact():
    store = FakeStore({"dpo-e3@v4": None})
    assert subject(store, "dpo-e3@v4").short_name == "dpo-e3"
    base = ModelSource(Path("package") / "base", "d", "sandbox", "sandbox", None)
    assert Subject(parse_model("sandbox"), base).short_name == "base"
    folder = ModelSource(Path("runs") / "My Model (2)", "d", "./runs/My Model (2)", "real", None)
    assert Subject(parse_model("./runs/x"), folder).short_name == "my-model--2"
    assert find_subject(None, "sandbox:pool-a").short_name == "pool-a"
    assert find_subject(None, "gpt-4").short_name == "gpt-4"


def test_a_remote_model_is_known_by_its_name_and_settings():
    plain, hot = find_subject(None, "gpt-4"), find_subject(None, "gpt-4?temperature=1")
    assert plain.digest != hot.digest
    assert plain.input("model").ref == "openai:gpt-4"
    assert (plain.world, find_subject(None, "sandbox:pool-a").world) == ("real", "sandbox")
