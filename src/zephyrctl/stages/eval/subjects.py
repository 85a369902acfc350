"""Who is measured and against whom: models here or behind an API, and the base a lineage goes back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.config import digest_of
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.modelspec import ModelSpec, parse_model

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource
    from zephyrctl.artifacts.store import Store
    from zephyrctl.providers.base import AnyProvider
    from zephyrctl.providers.site import Site

_BASES = ("sandbox", "sandbox:base")


@dataclass(frozen=True)
class Subject:
    """A model whose answers are graded. `source` None = it answers over an API."""

    spec: ModelSpec
    source: ModelSource | None

    @property
    def ref(self) -> str:
        """How people name it: a ref, a path, or the model's label."""
        return self.source.ref if self.source else self.spec.label

    @property
    def digest(self) -> str:
        """What the step key knows it by: the weights' digest; for a remote model its name and settings."""
        return self.source.digest if self.source else digest_of({"model": self.spec.text})

    @property
    def short_name(self) -> str:
        """What the eval artifact is named after: artifact name, `base` for the sandbox's, or folder name."""
        if self.source is None:
            return _tidy(self.spec.name)
        if self.source.artifact is not None:
            return self.source.artifact.ref.name
        return "base" if self.ref in _BASES else _tidy(self.source.path.name)

    @property
    def world(self) -> str:
        """Whether it belongs to the sandbox or to the real world."""
        if self.source is not None:
            return self.source.world
        return "sandbox" if self.spec.where == "sandbox" else "real"

    def input(self, role: str) -> InputRef:
        """The model as an input of the step."""
        return InputRef(role=role, ref=self.ref, digest=self.digest, kind="model")

    def provider(self, micro_batch: int | None, site: Site) -> AnyProvider:
        """Something the caller can ask. Local weights are loaded when the first answer is needed.

        Raises AuthError for a missing key, UsageError for a model that is not known.
        """
        if self.source is None or (site.project.vllm is not None and self.world == "real"):
            from zephyrctl.providers.registry import make_provider

            return make_provider(self.spec, model=self.source, site=site)
        from zephyrctl.providers.local.provider import LocalProvider

        return LocalProvider(self.source, max_batch=micro_batch or 64)


def find_subject(store: Store, text: str) -> Subject:
    """The model that `text` names. Raises UsageError, RefNotFound or IntegrityError."""
    spec = parse_model(text)
    if spec.where in ("folder", "artifact", "hub") or spec.text.partition("?")[0] in _BASES:
        from zephyrctl.training.locate import locate_model

        return Subject(spec, locate_model(store, spec))
    return Subject(spec, None)


def find_baseline(store: Store, subject: Subject, named: str | None) -> Subject:
    """The model to compare with: the one named, else the root of the subject's lineage, else (sandbox) the
    shipped base.

    Raises UsageError for a model without a known past, RefNotFound where its base model is no longer there.
    """
    if named is not None:
        return find_subject(store, named)
    root = _root(store, subject)
    if root is not None:
        try:
            return find_subject(store, root)
        except (RefNotFound, UsageError) as error:
            raise type(error)(
                f"{subject.ref} comes from {root}, which cannot be the baseline: {error.message}",
                hint="name another: --set baseline=MODEL",
            ) from None
    if subject.world == "sandbox":
        return find_subject(store, "sandbox")
    raise UsageError(
        f"it is not known which base model {subject.ref} comes from, so there is nothing to compare with",
        hint="name one: --set baseline=MODEL (a folder, NAME@v1, or sandbox)",
    )


def _root(store: Store, subject: Subject) -> str | None:
    """The ref of the first model of a lineage; None where the subject is no artifact of ours."""
    artifact = subject.source.artifact if subject.source else None
    root = None
    while artifact is not None:
        parent = next((i for i in artifact.manifest.inputs if i.role == "init"), None)
        if parent is None:
            break
        root = parent.ref
        if "@" not in root:
            break  # an outside model, named as it was
        try:
            artifact = store.resolve(root)
        except (RefNotFound, UsageError):
            break
    return root


def _tidy(name: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower())
    return kept.strip("._-")[:50] or "model"
