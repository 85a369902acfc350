"""A limit on calls a minute, counted second by second as hosted APIs do."""

from __future__ import annotations

import time
from collections.abc import Callable

from zephyrctl.testing.documents import Api
from zephyrctl.testing.replies import rate_headers


class Allowance:
    """`rpm` calls a minute; what one second allows is the most that may come at once."""

    def __init__(self, rpm: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rpm = rpm
        self._clock = clock
        self._most = max(1.0, rpm / 60)
        self._left = self._most
        self._then = clock()

    def take(self) -> bool:
        """Whether another call is allowed now; if so, it is counted."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._then) * self.rpm / 60)
        self._then = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def headers(self, api: Api) -> dict[str, str]:
        """What replies tell about it."""
        left = int(self._left)
        reset = 0.0 if left else (1 - self._left) * 60 / self.rpm
        return rate_headers(api, limit=int(self.rpm), left=left, reset=reset)
