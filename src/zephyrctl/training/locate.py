"""From what the user called a model to a folder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from zephyrctl.artifacts.bundle import MODEL_FILES, NOT_MODEL_FILES, offline_dir, open_thing
from zephyrctl.artifacts.models import ModelSource, model_folder_digest, model_from_folder, model_from_ref
from zephyrctl.artifacts.store import Store
from zephyrctl.errors import EnvironmentFault, IntegrityError, MissingExtra, RefNotFound, TryAgain, UsageError
from zephyrctl.modelspec import ModelSpec, parse_model
from zephyrctl.training.footprint import Shape, check_weights, read_shape

SANDBOX = "sandbox"


def sandbox_base() -> Path:
    """The folder of the tiny base model that comes with the package. Raises EnvironmentFault where it is not
    built."""
    folder = Path(str(resources.files("zephyrctl.sandbox").joinpath("base")))
    if not (folder / "config.json").is_file():
        raise EnvironmentFault(
            "the sandbox's base model is not part of this installation", hint="make sandbox-base"
        )
    return folder


def locate_model(store: Store, model: ModelSpec | str) -> ModelSource:
    """The model as a local folder with its digest and world.

    A name of the Hub is looked up in the bundle that `--offline-dir` or ZEPHYRCTL_OFFLINE_DIR names, else on the Hub;
    either way it is the same model with the same digest. Raises RefNotFound for a folder, artifact or Hub name that
    does not exist, TryAgain where the Hub cannot be reached, IntegrityError for a bundle with missing or damaged files,
    and UsageError for a model that only answers over an API.
    """
    spec = parse_model(model) if isinstance(model, str) else model
    if spec.where == "sandbox":
        if spec.text.split("?")[0] not in (SANDBOX, "sandbox:base", "sandbox:teacher"):
            raise UsageError(
                f"'{spec.text}' is a role of the sandbox, not a model with weights", hint="--init sandbox"
            )
        folder = sandbox_base()
        digest = model_folder_digest(folder, store.cache)
        return ModelSource(path=folder, digest=digest, ref=SANDBOX, world="sandbox", artifact=None)
    if spec.where == "artifact":
        return model_from_ref(store, spec.name)
    if spec.where == "folder":
        folder = Path(spec.name).expanduser()
        if not folder.is_dir():
            raise RefNotFound(f"no such model folder: {spec.name}", hint=_known(store))
        return _from_folder(store, folder)
    if spec.where == "hub":
        repo = spec.name.partition("@")[0]
        bundle = offline_dir()
        if bundle is not None:
            folder, thing = open_thing(bundle, "model", spec.name, store.cache)
            return replace(model_from_folder(store, folder), ref=thing.ref)
        folder = _from_hub(spec.name)
        return replace(model_from_folder(store, folder), ref=f"hf://{repo}@{folder.name}")
    raise UsageError(
        f"'{spec.text}' answers over an API; here a model with weights is needed",
        hint="--init ./folder, --init NAME@v1, --init sandbox",
    )


def _from_folder(store: Store, folder: Path) -> ModelSource:
    """A folder as a source; one that only describes a model is refused with what it lacks."""
    if not (folder / "manifest.json").exists():
        check_weights(folder, read_shape(folder))
    return model_from_folder(store, folder)


def _known(store: Store) -> str:
    names = sorted(
        str(a.ref) for n in store.names() if (a := store.newest(n, kind="model", sides=True)) is not None
    )
    return "models in the store: " + ", ".join(names) if names else "zephyrctl sft makes one"


def hub_shape(name: str) -> Shape | None:
    """The shape of a model of the Hub from its `config.json` alone; None where that cannot be had now."""
    try:
        return read_shape(_from_hub(name, ["config.json"]))
    except (EnvironmentFault, IntegrityError, RefNotFound, TryAgain):
        return None


def _from_hub(name: str, wanted: Sequence[str] = MODEL_FILES) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise MissingExtra("huggingface_hub", "train") from None
    repo, _, revision = name.partition("@")
    hint = f"on a connected machine: zephyrctl fetch --for hf:{name} --to DIR; then here: --offline-dir DIR"
    unwanted = list(NOT_MODEL_FILES)
    try:
        return Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=unwanted
            )
        )
    except GatedRepoError:
        raise EnvironmentFault(f"{repo} is gated: its page asks for consent first", hint=hint) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise TryAgain(
            f"the Hub cannot be reached, and {repo} is not in the local cache", hint=hint
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise RefNotFound(f"no model {name} on the Hub (or it is private)", hint=hint) from None
    except OSError as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TryAgain(f"downloading {repo} failed: {reason}", hint=hint) from None
