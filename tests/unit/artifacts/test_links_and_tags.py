from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyrctl.artifacts.lineage import lineage
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.ref import Ref
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import remove, tag, untag, users
from zephyrctl.errors import IntegrityError, RefNotFound, UsageError
from zephyrctl.events import Recorder

if TYPE_CHECKING:
    from conftest import Make

FILES = {"config.json": "{}", "model.safetensors": "weights"}


def of(artifact: object, role: str = "data") -> InputRef:
    from zephyrctl.artifacts.artifact import Artifact

    assert isinstance(artifact, Artifact)
    return InputRef(role=role, ref=str(artifact.ref), digest=artifact.digest, kind=artifact.kind)


def test_a_model_gets_a_relative_link_that_follows_the_newest_version(store: Store, make: Make) -> None:
    make("dpo-e3", "model", files=FILES)
    link = store.ckpt / "dpo-e3"
    assert link.readlink() == Path("../artifacts/dpo-e3/v1")
    assert (link / "config.json").read_text(encoding="utf-8") == "{}"
    make("dpo-e3", "model", files=FILES, knob=2)
    assert link.readlink() == Path("../artifacts/dpo-e3/v2")
    assert [p.name for p in store.ckpt.iterdir()] == ["dpo-e3"]


def test_data_gets_no_link(store: Store, make: Make) -> None:
    make()
    assert not store.ckpt.exists()


@pytest.mark.parametrize("what", ["folder", "file", "foreign link"])
def test_what_is_not_our_link_is_never_replaced(store: Store, make: Make, what: str) -> None:
    store.ckpt.mkdir(parents=True)
    mine = store.ckpt / "dpo-e3"
    if what == "folder":
        mine.mkdir()
    elif what == "file":
        mine.write_text("mine", encoding="utf-8")
    else:
        mine.symlink_to("../elsewhere/dpo-e3/v1")
    before = os.lstat(mine)
    heard = Recorder()
    artifact = make("dpo-e3", "model", files=FILES, emit=heard)
    assert os.lstat(mine).st_ino == before.st_ino
    assert any("left as it is" in text and str(artifact.ref) in text for text in heard.texts())


def test_a_lost_link_comes_back_when_the_finished_step_is_asked_again(
    store: Store, make: Make, make_step: object
) -> None:
    make("dpo-e3", "model", files=FILES)
    (store.ckpt / "dpo-e3").unlink()
    assert make_step("dpo-e3", "model").done() is not None  # type: ignore[operator]
    assert (store.ckpt / "dpo-e3").readlink() == Path("../artifacts/dpo-e3/v1")


def test_tags_move_and_are_logged(store: Store, make: Make) -> None:
    one, two = make(knob=1), make(knob=2)
    tag(store, "prefs@v1", "good")
    tag(store, "prefs@v2", "good")
    assert store.resolve("prefs:good").ref == two.ref
    assert store.tag_of(one.ref) == []
    assert store.tag_of(two.ref) == ["good"]
    untag(store, "prefs", "good")
    with pytest.raises(RefNotFound):
        store.resolve("prefs:good")
    with pytest.raises(RefNotFound):
        untag(store, "prefs", "good")
    assert [entry["event"] for entry in store.history("prefs")] == ["tag", "tag", "untag"]


def test_a_tag_whose_version_was_exchanged_is_an_integrity_error(store: Store, make: Make) -> None:
    make()
    tag(store, "prefs", "good")
    path = store.root / "prefs" / "tags" / "good"
    body = json.loads(path.read_bytes())
    path.write_text(json.dumps(body | {"manifest": "sha256:" + "0" * 64}), encoding="utf-8")
    with pytest.raises(IntegrityError, match="not what was tagged"):
        store.resolve("prefs:good")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(IntegrityError, match="tag file"):
        store.resolve("prefs:good")


def test_a_removed_version_goes_to_the_trash_and_its_number_is_never_given_again(
    store: Store, make: Make
) -> None:
    make(knob=1)
    make(knob=2)
    assert remove(store, "prefs") == Ref("prefs", 2)
    assert [p.name.split(".")[0] for p in store.trash.iterdir()] == ["prefs@v2"]
    assert store.resolve("prefs").ref.version == 1
    assert make(knob=3).ref.version == 3
    remove(store, "prefs@v3")
    remove(store, "prefs@v1")
    assert store.names() == []
    assert make(knob=4).ref.version == 4


def test_what_others_need_is_kept_unless_told_so(store: Store, make: Make) -> None:
    data = make("sft-data", "sft")
    make("sft-e1", "model", files=FILES, inputs=[of(data)])
    with pytest.raises(UsageError, match=r"used by sft-e1@v1") as caught:
        remove(store, "sft-data@v1")
    assert "--yes" in str(caught.value.hint)
    tag(store, "sft-e1", "good")
    assert users(store, Ref("sft-e1", 1)) == ["sft-e1:good"]
    with pytest.raises(UsageError, match="sft-e1:good"):
        remove(store, "sft-e1")
    remove(store, "sft-e1", yes=True)
    assert store.tags("sft-e1") == {}
    assert not os.path.lexists(store.ckpt / "sft-e1")
    remove(store, "sft-data@v1")


def test_removing_the_newest_model_moves_the_link_back(store: Store, make: Make) -> None:
    make("dpo-e3", "model", files=FILES)
    make("dpo-e3", "model", files=FILES, knob=2)
    remove(store, "dpo-e3@v2")
    assert (store.ckpt / "dpo-e3").readlink() == Path("../artifacts/dpo-e3/v1")


def test_a_damaged_version_can_be_removed(store: Store, make: Make) -> None:
    path = make().path / "manifest.json"
    path.chmod(0o644)
    path.write_text("{", encoding="utf-8")
    assert remove(store, "prefs@v1") == Ref("prefs", 1)
    with pytest.raises(RefNotFound):
        remove(store, "prefs@v1")


def test_a_torn_line_in_the_log_loses_no_number(store: Store, make: Make) -> None:
    make(knob=1)
    make(knob=2)
    remove(store, "prefs@v2")
    log = store.root / "prefs" / "log.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "remo')
    assert make(knob=3).ref.version == 3
    remove(store, "prefs@v3")
    assert [e["event"] for e in store.history("prefs")] == ["remove", "remove"]


def test_lineage_is_a_tree_over_digests(store: Store, make: Make) -> None:
    outside = InputRef(role="prompts", ref="./seeds.jsonl", digest="sha256:" + "1" * 64, kind="prompts")
    data = make("sft-data", "sft", inputs=[outside])
    model = make("sft-e1", "model", files=FILES, inputs=[of(data)])
    pairs = make(inputs=[of(data)])
    make("dpo-e3", "model", files={**FILES, "x.json": "1"}, inputs=[of(pairs), of(model, "init")])
    tree = lineage(store, "dpo-e3")
    assert [node.ref for node in tree.inputs] == ["prefs@v1", "sft-e1@v1"]
    assert tree.inputs[0].inputs[0].inputs[0].state == "outside"
    assert tree.inputs[1].inputs[0].state == "seen"
    assert tree.document()["inputs"][1]["role"] == "init"
    assert len(tree.lines()) == 6
    assert tree.lines()[3].startswith("      prompts: ./seeds.jsonl")


def test_lineage_shows_what_is_missing_changed_or_damaged(store: Store, make: Make) -> None:
    data = make("sft-data", "sft")
    other = make("sft-data", "sft", knob=2)
    wrong = of(other).model_copy(update={"digest": "sha256:" + "2" * 64})
    third = make("sft-data", "sft", knob=3)
    make(
        "sft-e1",
        "model",
        files=FILES,
        inputs=[of(data, "a"), wrong.model_copy(update={"role": "b"}), of(third, "c")],
    )
    remove(store, "sft-data@v1", yes=True)
    path = third.path / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])
    assert [node.state for node in lineage(store, "sft-e1").inputs] == ["missing", "changed", "damaged"]
    with pytest.raises(IntegrityError):
        lineage(store, "sft-data@v3")
