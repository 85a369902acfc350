"""Where an artifact comes from: a tree over the inputs that manifests name, by ref and digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.behind import names_version
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import IntegrityError, RefNotFound


@dataclass
class Node:
    """One artifact or outside input.

    `state`: here, missing, changed, damaged, outside, or seen (shown further up).
    """

    ref: str
    digest: str
    kind: str
    role: str = ""
    stage: str = ""
    world: str = ""
    state: str = "here"
    inputs: list[Node] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The tree as JSON-ready dicts."""
        body = {k: v for k, v in vars(self).items() if k != "inputs" and v != ""}
        return {**body, "inputs": [node.document() for node in self.inputs]}

    def lines(self, indent: str = "") -> list[str]:
        """The tree as indented text, one line a node."""
        role = f"{self.role}: " if self.role else ""
        how = f", made by {self.stage}" if self.stage else ""
        state = "" if self.state == "here" else f"  [{_STATES[self.state]}]"
        text = f"{indent}{role}{self.ref}  ({self.kind}{how}, {self.digest[:19]}…){state}"
        return [text, *(line for node in self.inputs for line in node.lines(indent + "  "))]


_STATES = {
    "missing": "no longer in the store",
    "changed": "another content now",
    "damaged": "its manifest is damaged",
    "outside": "from outside the store",
    "seen": "shown above",
}


def lineage(store: Store, ref: str) -> Node:
    """The tree of all inputs of the version that `ref` means.

    Raises RefNotFound, IntegrityError for that version only.
    """
    return _of(store, store.resolve(ref), "", set())


def _of(store: Store, artifact: Artifact, role: str, seen: set[str]) -> Node:
    manifest = artifact.manifest
    node = Node(str(artifact.ref), artifact.digest, artifact.kind, role, manifest.stage, manifest.world)
    if str(artifact.ref) in seen:
        node.state = "seen" if manifest.inputs else "here"
        return node
    seen.add(str(artifact.ref))
    node.inputs = [_input(store, item, seen) for item in manifest.inputs]
    return node


def _input(store: Store, item: InputRef, seen: set[str]) -> Node:
    node = Node(item.ref, item.digest, item.kind, item.role, state="outside")
    if not names_version(item):
        return node
    try:
        artifact = store.resolve(item.ref)
    except RefNotFound:
        node.state = "missing"
        return node
    except IntegrityError:
        node.state = "damaged"
        return node
    if artifact.digest != item.digest:
        node.state = "changed"
        return node
    return _of(store, artifact, item.role, seen)
