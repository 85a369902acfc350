"""The Hub as `bundle_fetch` asks it, through huggingface_hub. HF_ENDPOINT, HF_TOKEN and proxies are that library's
matter; no code of a repository is run, and nothing is put into its cache."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zephyrctl.artifacts.bundle import BundleFile, Thing
from zephyrctl.artifacts.bundle_fetch import Wanted
from zephyrctl.errors import AuthError, MissingExtra, RefNotFound, TryAgain, UsageError, ZephyrError, no_space

_SECONDS = 30.0
_FULL = (28, 122, 27)  # ENOSPC, EDQUOT, EFBIG


class HuggingFaceHub:
    """A `bundle_fetch.Hub`. Raises AuthError for what is private or gated, RefNotFound for what is not there, TryAgain
    where the Hub cannot be reached, MissingExtra without huggingface_hub."""

    def listing(self, wanted: Wanted, revision: str | None) -> tuple[str, list[BundleFile]]:
        """The commit that `revision` means now, and all files of it."""
        with _explained(wanted.repo, revision):
            from huggingface_hub import HfApi

            info = HfApi().repo_info(
                wanted.repo,
                repo_type=_type(wanted.kind),
                revision=revision,
                files_metadata=True,
                timeout=_SECONDS,
            )
        found = [
            BundleFile(
                s.rfilename, int(s.size or 0), s.lfs.sha256 if s.lfs else None, None if s.lfs else s.blob_id
            )
            for s in getattr(info, "siblings", None) or []
        ]
        return str(info.sha), found

    def download(self, thing: Thing, names: Sequence[str], folder: Path) -> None:
        """Puts the files `names` of the thing's commit into `folder`; a line that breaks is taken up a few times."""
        with _explained(thing.repo, thing.commit):
            from huggingface_hub import snapshot_download

            snapshot_download(
                thing.repo,
                repo_type=_type(thing.kind),
                revision=thing.commit,
                local_dir=folder,
                allow_patterns=[glob.escape(name) for name in names],
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes, no part of the repository


def _type(kind: str) -> str:
    return "model" if kind == "model" else "dataset"


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """The library's errors as ours."""
    try:
        import httpx2
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise MissingExtra("huggingface_hub", "train") from None
    try:
        yield
    except HFValidationError:
        raise UsageError(f"'{repo}' is no name on the Hub", hint="org/name, or org/name@revision") from None
    except (OSError, httpx2.HTTPError) as error:
        raise _ours(repo, revision, error) from None


def _ours(repo: str, revision: str | None, error: Exception) -> ZephyrError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    again = "the same command goes on where this one stopped"
    if isinstance(error, OfflineModeIsEnabled):
        return TryAgain(f"{repo}: HF_HUB_OFFLINE forbids the way to the Hub", hint="unset HF_HUB_OFFLINE")
    if isinstance(error, RevisionNotFoundError):
        return RefNotFound(f"{repo} has no revision '{revision}' on the Hub")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) or status == 403:
        return AuthError(
            f"{repo} is gated: its page asks for consent first", hint="ask there, then set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return RefNotFound(
            f"there is no {repo} on the Hub (or it is private)", hint="HF_TOKEN opens private ones"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return no_space(repo, error.strerror)
    why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return TryAgain(f"fetching {repo} failed: {why}", hint=again)
