"""Data sets of the Hugging Face Hub: `hf://org/name[@revision][/folder or file]`, read as a folder of this machine is.

Only the data files that a kind needs are downloaded, into the Hub's own cache; no script of a repository is run. The
commit they belong to stands in the ref, `hf://org/name@<commit>`, so that a lineage names exactly what was read. Where
a bundle is in use (`bundle.offline_dir`), the files and the commit are the bundle's, with the same refs.
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HOME are honoured by the library that does the work, huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.artifacts.bundle import offline_dir, open_thing
from zephyrctl.artifacts.folders import Chosen, choose, no_files
from zephyrctl.artifacts.readers import is_data_file
from zephyrctl.errors import (
    AuthError,
    EnvironmentFault,
    IntegrityError,
    RefNotFound,
    TryAgain,
    UsageError,
    ZephyrError,
    no_space,
)
from zephyrctl.events import Emit, Note, silent

PREFIX = "hf://"
_SPELLED = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(?P<path>[^@]*))?"
)
_SECONDS = 30.0


@dataclass(frozen=True)
class HubName:
    """A data set as typed: its repository, the revision asked for (None = the newest), and a place inside."""

    repo: str
    revision: str | None
    path: str

    def __str__(self) -> str:
        return _spell(self.repo, self.revision, self.path)

    @property
    def folder(self) -> str:
        """What somebody would call a copy on this machine."""
        return "./" + self.repo.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class HubData:
    """Data files in the Hub's cache: `(path, name in messages, split)`; `ref` names their commit, `rule` says which
    of the repository's files they are (as of `folders.choose`)."""

    ref: str
    files: list[tuple[Path, str, str | None]]
    rule: str


def parse_hub(text: str) -> HubName:
    """The data set that `text`, which begins with `hf://`, names. Raises UsageError showing the grammar."""
    body = text.removeprefix(PREFIX).removeprefix("datasets/")
    match = _SPELLED.fullmatch(body)
    if match is None or body.startswith(("models/", "spaces/")) or ".." in body:
        raise UsageError(
            f"{text!r:.120} names no data set of the Hub",
            hint="hf://ORG/NAME, hf://ORG/NAME@REVISION, hf://ORG/NAME/FOLDER",
        )
    return HubName(match["repo"], match["revision"], (match["path"] or "").strip("/"))


def fetch_data(text: str, kind: str, emit: Emit = silent) -> HubData:
    """The files of a data set that rows of `kind` are read from, downloaded unless the cache holds them.

    Raises AuthError for a gated or private data set, RefNotFound for one that is not there, TryAgain when the Hub
    cannot be reached (also where HF_HUB_OFFLINE is set and the cache lacks a file), UsageError for one without data
    files.
    """
    name = parse_hub(text)
    bundle = offline_dir()
    if bundle is not None:
        return _from_bundle(bundle, name, kind)
    from huggingface_hub import snapshot_download

    with _explained(name):
        commit, names = _listing(name)
        chosen = _choose(name, names, kind)
        files = [relative for relative, _ in chosen.files]
        emit(Note(f"{name}: {len(files)} data files" + (f" ({chosen.rule})" if chosen.rule else "")))
        wanted = [glob.escape(relative) for relative in files]
        folder = Path(
            snapshot_download(name.repo, repo_type="dataset", revision=name.revision, allow_patterns=wanted)
        )
        if commit is not None and folder.name != commit:
            # the branch moved between the listing and the download
            folder = Path(
                snapshot_download(name.repo, repo_type="dataset", revision=commit, allow_patterns=wanted)
            )
    ref = _spell(name.repo, folder.name, name.path)
    missing = [relative for relative in files if not (folder / relative).is_file()]
    if missing:
        raise IntegrityError(f"{ref}: {missing[0]} is not in the Hub's cache after the download")
    base = _spell(name.repo, folder.name, "")
    found = [(folder / relative, f"{base}/{relative}", split) for relative, split in chosen.files]
    return HubData(ref, found, chosen.rule)


def _from_bundle(bundle: Path, name: HubName, kind: str) -> HubData:
    """The same files of a data set in a bundle, each compared with its hash."""
    asked = f"{name.repo}@{name.revision}" if name.revision else name.repo
    folder, thing = open_thing(bundle, "data", asked)
    chosen = _choose(name, [file.path for file in thing.files], kind)
    base = _spell(name.repo, thing.commit, "")
    found = [(folder / relative, f"{base}/{relative}", split) for relative, split in chosen.files]
    return HubData(_spell(name.repo, thing.commit, name.path), found, chosen.rule)


def _listing(name: HubName) -> tuple[str | None, list[str]]:
    """The commit that is asked for, and the names of its files; without a way to the Hub those that the cache knows
    of, and None."""
    import httpx2
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, OfflineModeIsEnabled

    try:
        info = HfApi().dataset_info(name.repo, revision=name.revision, timeout=_SECONDS)
    except (OfflineModeIsEnabled, httpx2.ConnectError, httpx2.TimeoutException):
        try:
            known = get_cached_repo_tree(name.repo, repo_type="dataset", revision=name.revision)
        except CachedRepoTreeNotFoundError:
            raise _unreachable(name) from None
        return None, [file.path for file in known]
    return info.sha, [file.rfilename for file in info.siblings or []]


def _choose(name: HubName, names: list[str], kind: str) -> Chosen:
    if name.path in names:
        if not is_data_file(Path(name.path)):
            raise UsageError(f"{name}: not a kind of file that can be read")
        return Chosen([(name.path, None)], "")
    prefix = f"{name.path}/" if name.path else ""
    inside = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
    if not inside:
        raise RefNotFound(f"{name}: the data set has no '{name.path}'")
    chosen = choose(inside, kind)
    if chosen is None:
        raise no_files(str(name), inside)
    return Chosen([(prefix + relative, split) for relative, split in chosen.files], chosen.rule)


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """The library's errors as ours, and no progress bars of its own."""
    import httpx2
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    try:
        yield
    except ZephyrError:
        raise
    except HFValidationError:
        raise UsageError(f"{name} names no data set of the Hub") from None
    except (OSError, httpx2.HTTPError) as error:
        raise _ours(name, error) from None
    finally:
        if shown:
            enable_progress_bars()


def _ours(name: HubName, error: Exception) -> ZephyrError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        return _ours(name, cause) if isinstance(cause, HfHubHTTPError) else _unreachable(name)
    if isinstance(error, RevisionNotFoundError):
        return RefNotFound(f"{name.repo} has no revision '{name.revision}' on the Hub")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return _refused(name, "is gated: its authors want to be asked first", "ask on its page, then ")
        if status in (401, 403):
            return _refused(name, f"is private, or not there (the Hub answered {status})", "")
        if status == 404:
            return RefNotFound(
                f"there is no data set {name.repo} on the Hub", hint=f"or a folder: {name.folder}"
            )
        return TryAgain(f"the Hub answered {status} for {name.repo}", hint=_by_hand(name))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space("the Hub's cache (HF_HOME)", error.strerror)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return EnvironmentFault(
            f"the Hub's cache cannot be written ({error.strerror})", hint="HF_HOME names another folder"
        )
    why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return TryAgain(f"downloading {name.repo} from the Hub failed: {why}", hint=_by_hand(name))


def _refused(name: HubName, why: str, first: str) -> AuthError:
    return AuthError(
        f"{name.repo} {why}",
        hint=f"{first}set HF_TOKEN to a token that may read it (or: hf auth login), or {_by_hand(name)}",
    )


def _unreachable(name: HubName) -> TryAgain:
    return TryAgain(
        f"the Hub cannot be reached, and {name} is not whole in its cache on this machine",
        hint=_by_hand(name),
    )


def _by_hand(name: HubName) -> str:
    return (
        f"bring the folder from a machine that can: hf download {name.repo} --repo-type dataset --local-dir "
        f"{name.folder}, then give {name.folder}"
    )


def _spell(repo: str, revision: str | None, path: str) -> str:
    return PREFIX + repo + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")
