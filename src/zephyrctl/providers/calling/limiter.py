"""How many calls may be in flight to one model: as many as its server bears, found by trying.

Pure: told what was sent and how it ended, it says how many more may go. It needs no clock, because replies are
its clock.
"""

from __future__ import annotations

START = 16
_CUT = 0.8
_FIRST_PATIENCE = 4
_LAST_PATIENCE = 512
_STRAGGLERS = 8
"""An episode is over when all but one eighth of what was out at its beginning are back."""


class Limiter:
    """At first the number in flight doubles per round trip. The first refusal (429) ends that; from then on:

    * refusals of one episode (until what was out at the first of them is back) cut once, to 0.8 of what was in
      flight, or to what the server did answer if that was less, never below half of it;
    * growth is by one per round trip, up to just under the level that was refused;
    * that level is tried again after a while; each refused trial doubles the while. A trial that is answered
      shows that the server bears more by now, and growth goes on.

    Other failures (5xx, time-outs) only keep it from growing for a while.
    """

    def __init__(self, ceiling: int, start: int = START) -> None:
        self.ceiling = max(1, ceiling)
        self.in_flight = 0
        self._limit = float(min(self.ceiling, max(1, start)))
        self._sent = 0
        self._bad: float | None = None
        """The least number in flight that the server is known to refuse."""
        self._slow_start = True
        self._pause = 0
        self._calm = 0
        self._patience = _FIRST_PATIENCE
        self._trial = False
        # The episode: tickets up to `_until` were out when it began, `_left` of them are not back.
        self._until = 0
        self._left = 0
        self._enough = 0
        self._accepted = 0
        self._cut_to = 0.0
        self._least = 0.0

    @property
    def limit(self) -> int:
        """How many calls may be in flight now."""
        return max(1, min(self.ceiling, int(self._limit)))

    @property
    def room(self) -> bool:
        """Whether one more may be sent."""
        return self.in_flight < self.limit

    def sent(self) -> int:
        """A call goes out; its ticket, to be given back by exactly one of the methods below."""
        self.in_flight += 1
        self._sent += 1
        return self._sent

    def answered(self, ticket: int, *, eager: bool = False) -> None:
        """The server did its work, whatever it said. `eager` = more calls wait than there is room for."""
        busy = eager or self.in_flight >= self.limit
        self.in_flight -= 1
        if self._back(ticket, accepted=True):
            return
        if self._pause > 0:
            self._pause -= 1
        elif busy and not self._left:
            self._grow()

    def limited(self, ticket: int) -> None:
        """The server refused a call because there were too many (429)."""
        level = self.in_flight
        self.in_flight -= 1
        if self._left or ticket <= self._until:
            self._limit = max(1.0, min(self._limit, float(self.in_flight)))
            self._back(ticket, accepted=False)
            return
        self._patience = min(_LAST_PATIENCE, self._patience * 2) if self._trial else _FIRST_PATIENCE
        self._slow_start = self._trial = False
        self._calm = 0
        self._until, self._left, self._accepted = self._sent, self.in_flight, 0
        self._enough = self.in_flight // _STRAGGLERS
        self._cut_to, self._least = max(1.0, _CUT * level), max(1.0, level / 2)
        self._limit = max(1.0, min(self._cut_to, float(self.in_flight)))
        if not self._left:
            self._close()

    def troubled(self, ticket: int) -> None:
        """A call failed for a reason that says nothing about how many the server bears."""
        self.in_flight -= 1
        self._pause = 2 * self.limit
        self._calm = 0
        self._back(ticket, accepted=True)

    def lower(self, ceiling: int) -> None:
        """This machine bears no more than `ceiling`."""
        self.ceiling = max(1, min(self.ceiling, ceiling))
        self._limit = min(self._limit, float(self.ceiling))

    def _back(self, ticket: int, *, accepted: bool) -> bool:
        """Whether the ticket belonged to the open episode; the last one closes it."""
        if not self._left or ticket > self._until:
            return False
        self._left -= 1
        self._accepted += accepted
        if self._left <= self._enough and self._accepted:
            self._accepted += self._left
            self._left = 0
        if not self._left:
            self._close()
        return True

    def _close(self) -> None:
        held = max(self._least, min(self._cut_to, float(self._accepted)))
        self._limit = min(float(self.ceiling), held)
        self._bad = max(2.0, self._accepted + 1.0, float(int(self._least) + 1))

    def _grow(self) -> None:
        limit = self._limit
        if self._bad is None:
            # Doubling per round trip at the start; a quarter once the server proved to bear more than thought.
            step = 1.0 if self._slow_start else max(1.0 / limit, 0.25)
            self._limit = min(float(self.ceiling), limit + step)
        elif limit + 1.0 <= self._bad - 1.0:
            self._limit = min(float(self.ceiling), limit + 1.0 / limit)
        elif limit < self._bad - 1.0:
            self._limit = min(float(self.ceiling), self._bad - 1.0, limit + 1.0 / limit)
        elif limit < self.ceiling:
            self._try_more()

    def _try_more(self) -> None:
        self._calm += 1
        if not self._trial and self._calm >= self._patience * self.limit:
            self._trial, self._calm = True, 0
            self._limit = min(float(self.ceiling), float(self.limit + 1))
        elif self._trial and self._calm >= 2 * self.limit:
            self._trial, self._calm = False, 0
            self._bad, self._patience = None, _FIRST_PATIENCE
