"""What a caller has spent and may still spend, for the reader; the ledger alone decides what may be sent."""

from __future__ import annotations

import math
import threading

from zephyrctl.errors import BudgetReached, UsageError
from zephyrctl.ledger.entries import Budget, NoRoom, Run, Spend
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.money import UUSD, dollars
from zephyrctl.providers.base import Model

_CLOSE = "; --accept-partial closes the artifact from the rows that are finished"


class Purse:
    """Money of one run: what the ledger says at the beginning, and what was paid since. Amounts in uusd."""

    def __init__(self, ledger: Ledger, run: Run, budget: Budget) -> None:
        self._ledger = ledger
        self._run = run
        self.budget = budget
        self._lock = threading.Lock()
        self._opened = False
        self._before = Spend()
        self._project = Spend()
        self._paid = 0
        self._unknown = False

    def open(self) -> None:
        """Read what was spent before; once."""
        with self._lock:
            if self._opened:
                return
            self._opened = True
            self._before = self._ledger.spend(self._run.id)
            if self.budget.project is not None:
                self._project = self._ledger.spend(None)

    def pay(self, cost: int | None) -> None:
        """A reply was stored; `cost` None = its price is not known."""
        with self._lock:
            if cost is None:
                self._unknown = True
            else:
                self._paid += cost

    @property
    def spent(self) -> int | None:
        """Paid and in doubt, over all processes and restarts; None where a price is not known."""
        return None if self._unknown else self._before.spent + self._paid

    @property
    def left(self) -> int | None:
        """What the stricter limit leaves; None = no limit."""
        rests = []
        if self.budget.step is not None:
            rests.append(self.budget.step - self._before.spent - self._paid)
        if self.budget.project is not None:
            rests.append(self.budget.project - self._project.spent - self._paid)
        return max(0, min(rests)) if rests else None

    def reached(self, no_room: NoRoom, *, done: int, total: int) -> BudgetReached | UsageError:
        """The error for a reservation that can never fit; `done` of `total` asks of this wave are settled.

        A UsageError where nobody agreed to any limit: then consent is missing, not money.
        """
        spend = self._ledger.spend(self._run.id if no_room.scope == "step" else None)
        limit = no_room.limit
        whose = "this step" if no_room.scope == "step" else "the project"
        doubt = f", {dollars(spend.doubt)} of it in doubt" if spend.doubt else ""
        message = (
            f"the budget of {whose} is used up: {dollars(spend.spent)} of {dollars(limit)} spent{doubt}, and the "
            f"next call may cost {dollars(no_room.need)}; {done} of {total} calls of this wave are done"
        )
        more = enough(spend.spent, no_room, done=done, total=total, parts=self.budget.parts)
        if no_room.scope == "step" and not self.budget.agreed:
            return UsageError(
                f"{dollars(spend.spent)} is spent{doubt}, and more than {dollars(limit)} needs your consent; {done} of "
                f"{total} calls of this wave are done",
                hint=f"--max-usd {more} or --yes goes on from here and pays nothing twice",
            )
        if self.budget.parts > 1:
            message += f"; the limits are shared by {self.budget.parts} parts"
        where = (
            f"--max-usd {more}"
            if no_room.scope == "step"
            else f"a max_usd of {more} for the project (zephyrctl.yaml or ZEPHYRCTL_MAX_USD)"
        )
        return BudgetReached(
            message,
            hint=f"{where} goes on from here and pays nothing twice"
            + (_CLOSE if self.budget.closable else ""),
            resume="run the same command again with a higher limit",
        )


def enough(spent: int, no_room: NoRoom, *, done: int, total: int, parts: int = 1) -> str:
    """A limit in dollars, for all parts together, that lets the rest of a wave through, rounded up to two digits."""
    rest = max(1, total - done)
    each = spent / done if done else no_room.need
    wanted = max(no_room.limit * 1.2, spent + 1.3 * rest * each + no_room.need) * parts / UUSD
    digits = 1 - math.floor(math.log10(wanted)) if wanted > 0 else 2
    rounded = math.ceil(round(wanted * 10**digits, 6)) / 10**digits
    return f"{rounded:.{max(0, digits)}f}" if rounded < 100 else f"{rounded:.0f}"


def unpriced(model: Model) -> UsageError:
    """The error for a limit on calls whose price nobody knows."""
    return UsageError(
        f"the price of {model.label} is not known, so a limit in dollars cannot hold",
        hint="--price in=…,out=… (US dollars per million tokens; 0 for a server of your own), or a price in "
        "zephyrctl.yaml; without --max-usd and max_usd no price is needed",
    )
