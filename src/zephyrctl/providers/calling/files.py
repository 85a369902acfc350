"""How many connections this process may hold open, and what to do when it may hold no more."""

from __future__ import annotations

from zephyrctl.errors import EnvironmentFault
from zephyrctl.events import Emit, Warning_
from zephyrctl.providers.calling.limiter import Limiter

_OTHERS = 48
"""Files that are open beside the connections: the ledger, data, logs, libraries."""
_GIVEN_UP = 8
"""Connections given up at once when this machine runs out of file descriptors."""


def connections_possible() -> int | None:
    """What the limit of open files leaves for connections; None = there is no limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(1, soft - _OTHERS)


class Files:
    """Keeps the calls in flight below the limit of open files; says so once."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._told = False

    def ceiling(self, wanted: int) -> int:
        """As many calls in flight as are wanted, or as the limit leaves."""
        possible = connections_possible()
        if possible is None or wanted <= possible:
            return wanted
        self._tell(possible)
        return possible

    def ran_out(self, limiter: Limiter, wait: float) -> float:
        """No connection could be opened for want of files: fewer from now on; `wait` seconds until the next try.

        Raises EnvironmentFault where not even one can be.
        """
        if limiter.ceiling == 1 and limiter.in_flight == 0:
            raise EnvironmentFault(
                "no file descriptor is left for even one connection", hint="raise the limit: ulimit -n 4096"
            )
        limiter.lower(max(1, limiter.in_flight - _GIVEN_UP))
        self._tell(limiter.ceiling)
        return wait

    def _tell(self, ceiling: int) -> None:
        if not self._told:
            self._told = True
            self._emit(
                Warning_(
                    f"few files may be open at once: at most {ceiling} calls in flight; `ulimit -n 4096` before "
                    "the command allows more"
                )
            )
