"""One step cut into parts that know nothing of each other: the tasks of an array job.

Each part takes the prompts that their hash gives it, and has its own artifact, its own ledger and its share of the
budget. `artifacts merge` and `ledger merge` put the parts together afterwards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zephyrctl.errors import UsageError

AUTO = "auto"
_TASK = "SLURM_ARRAY_TASK_"
_HINT = "--shard i/n, for example --shard $((SLURM_ARRAY_TASK_ID + 1))/8 for the tasks 0-7 of an array"


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`; `str(shard)` is `3/8`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str, environ: Mapping[str, str] = os.environ) -> Shard:
        """`3/8`, or `auto`: this task's place in the SLURM array that it runs in.

        Raises UsageError showing the form, or naming the variable that is missing or does not fit.
        """
        if text.strip() == AUTO:
            return _of_array(environ)
        shard = cls.read(text)
        if shard is None:
            raise UsageError(
                f"'{text}' is no part of a whole", hint="--shard 3/8 is the third of eight; or auto"
            )
        return shard

    @classmethod
    def read(cls, text: str) -> Shard | None:
        """What `3/8` says; None for text of another form."""
        part, slash, of = (piece.strip() for piece in text.partition("/"))
        if slash and part.isascii() and part.isdigit() and of.isascii() and of.isdigit():
            shard = cls(int(part), int(of))
            if 1 <= shard.index <= shard.count:
                return shard
        return None

    def mine(self, prompt_id: str) -> bool:
        """Whether the prompt belongs to this part: by its hash alone, so every machine agrees, and equal prompts
        meet in one part."""
        drawn = hashlib.sha256(f"shard\x1f{prompt_id}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(drawn[:8], "big") % self.count == self.index - 1

    def name(self, name: str) -> str:
        """The name of this part's artifact, where the whole is called `name`."""
        return f"{name}.shard-{self.index}-of-{self.count}"

    def ledger_path(self, path: Path) -> Path:
        """This part's own ledger, beside the store's ledger at `path`."""
        return path.with_name(f"{path.stem}.shard-{self.index}-of-{self.count}{path.suffix}")

    def begin(self, path: Path) -> int:
        """Make this part's ledger, where it is not there yet, with the replies that the store's ledger at `path`
        holds, so that none of them is paid again; what that ledger has spent, in uusd.

        Raises IntegrityError, EnvironmentFault.
        """
        from zephyrctl.ledger.ledger import Ledger
        from zephyrctl.ledger.transfer import start_from

        start_from(self.ledger_path(path), path)
        with Ledger.open(path) as ledger:
            return ledger.spend().spent

    def share(self, uusd: int | None) -> int | None:
        """This part's share of a limit, rounded down; None = no limit."""
        return None if uusd is None else uusd // self.count


def _of_array(environ: Mapping[str, str]) -> Shard:
    found: dict[str, int] = {}
    for name in ("ID", "MIN", "MAX", "COUNT"):
        text = environ.get(_TASK + name, "")
        if not (text.isascii() and text.isdigit()):
            told = f"{_TASK}{name}={text!r}" if text else f"{_TASK}{name} is not set"
            raise UsageError(f"--shard auto is for the tasks of a SLURM array: {told}", hint=_HINT)
        found[name] = int(text)
    first, last, count = found["MIN"], found["MAX"], found["COUNT"]
    # Some tasks of an array that are submitted again look like a smaller array. Taking them for the whole would do
    # other work than the first time, so only what can be the whole is accepted.
    if first > 1 or last - first + 1 != count or not first <= found["ID"] <= last or count < 2:
        raise UsageError(
            f"--shard auto: the tasks {first}-{last} ({count} of them) are not a whole array from 0 or 1 on; "
            "how many parts there are in all cannot be known",
            hint=_HINT,
        )
    return Shard(found["ID"] - first + 1, count)
