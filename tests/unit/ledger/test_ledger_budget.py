"""Money in the ledger: sums that are always those of the attempts, and limits that nobody crosses.

The limit is checked where the reservation is written, so two processes cannot both pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from zephyrctl.errors import UsageError
from zephyrctl.ledger.entries import (
    Batch,
    Budget,
    Ended,
    Finished,
    Intent,
    NoRoom,
    Request,
    Run,
    Spend,
    StoredReply,
)
from zephyrctl.ledger.ledger import Ledger

RUN = Run("run", "gen-sft")
REPLY = StoredReply(b"answer", "text", "stop", None, "m-1")


def request(n: int) -> Request:
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body={"n": n}, draw=0)


def intent(n: int, reserve: int | None = 10) -> Intent:
    return Intent(request(n), reserve)


def test_a_reservation_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    budget = Budget(step=30)
    with Ledger.open(tmp_path / "l") as ledger:
        one, two, three = ledger.begin_many([intent(n) for n in range(3)], RUN, budget).result()
        ledger.finish_many([Finished(one, request(0).key, REPLY, 6)]).result()
        ledger.fail_many([Ended(two, "timeout", "timeout")]).result()
        (refused,) = ledger.begin_many([intent(4)], RUN, budget).result()
        assert refused == NoRoom("step", 30, 16, 10, 10)
        assert (refused.free, refused.hopeless) == (4, False)
        assert isinstance(ledger.begin_many([intent(5, 4)], RUN, budget).result()[0], int)
        ledger.fail_many([Ended(three, "error", "rate_limit")]).result()
        assert isinstance(ledger.begin_many([intent(4)], RUN, budget).result()[0], int)
        (refused,) = ledger.begin_many([intent(6, 15)], RUN, budget).result()
        assert refused.hopeless
        assert ledger.spend("run") == ledger.spend() == Spend(settled=6, reserved=14, doubt=10)


def test_a_smaller_request_may_fit_where_a_larger_one_does_not(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        begun = ledger.begin_many([intent(0, 8), intent(1, 8), intent(2, 2)], RUN, Budget(step=10)).result()
        assert [type(one) for one in begun] == [int, NoRoom, int]


def test_the_project_limit_counts_all_runs_and_the_tighter_limit_is_told(tmp_path: Path) -> None:
    other = Run("other", "eval")
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = ledger.begin_many([intent(0, 20)], other).result()
        ledger.finish_many([Finished(one, request(0).key, REPLY, 20)]).result()
        both = Budget(step=9, project=25)
        assert ledger.begin_many([intent(1, 10)], RUN, both).result() == [NoRoom("project", 25, 20, 0, 10)]
        assert ledger.begin_many([intent(1, 10)], RUN, Budget(step=4, project=25)).result() == [
            NoRoom("step", 4, 0, 0, 10)
        ]
        assert isinstance(ledger.begin_many([intent(1, 5)], RUN, both).result()[0], int)
        assert ledger.spend("run") == Spend(reserved=5)
        assert ledger.spend("other") == Spend(settled=20)
        assert ledger.spend() == Spend(settled=20, reserved=5)


def test_what_is_here_or_costs_nothing_passes_any_limit(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = ledger.begin_many([intent(0)], RUN).result()
        ledger.finish_many([Finished(one, request(0).key, REPLY, 10)]).result()
        begun = ledger.begin_many(
            [intent(0), intent(1, 0), intent(2)], RUN, Budget(step=5, project=0)
        ).result()
        assert begun[0] == REPLY
        assert [type(one) for one in begun[1:]] == [int, NoRoom]


def test_an_unknown_price_is_an_error_only_under_a_limit(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        with pytest.raises(UsageError, match="price of p:m is not known"):
            ledger.begin_many([intent(0), intent(1, None)], RUN, Budget(step=10**9)).result()
        assert ledger.stats("run").states == {}
        (one,) = ledger.begin_many([intent(1, None)], RUN).result()
        ledger.finish_many([Finished(one, request(1).key, REPLY)]).result()
        assert ledger.spend() == Spend()


def test_a_reply_of_unknown_cost_counts_at_its_reservation(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        (one,) = ledger.begin_many([intent(0)], RUN).result()
        ledger.finish_many([Finished(one, request(0).key, REPLY)]).result()
        assert ledger.spend() == Spend(settled=10)


_SUMS = """
    SELECT SUM(CASE WHEN state = 'ok' THEN cost_uusd ELSE 0 END),
           SUM(CASE WHEN state IN ('inflight', 'batched') THEN reserved_uusd ELSE 0 END),
           SUM(CASE WHEN state IN ('in_doubt', 'timeout') THEN reserved_uusd ELSE 0 END)
    FROM attempt WHERE run_id LIKE ?
"""


class Money(RuleBasedStateMachine):
    """Attempts begin and end in any order, in two runs and from ledgers that come and go."""

    attempts = Bundle("attempts")
    step, project = 60, 90

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "l"
        self.ledger = Ledger.open(self.path)
        self.batches = 0

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    numbers = st.lists(st.integers(0, 12), min_size=1, max_size=4)

    @rule(target=attempts, numbers=numbers, reserve=st.integers(0, 25), run=st.sampled_from(["a", "b"]))
    def begin(self, numbers: list[int], reserve: int, run: str) -> object:
        intents = [intent(n, reserve) for n in numbers]
        begun = self.ledger.begin_many(intents, Run(run), Budget(self.step, self.project)).result()
        return self._sent(numbers, reserve, begun)

    @rule(target=attempts, numbers=numbers, reserve=st.integers(0, 25))
    def hand_in(self, numbers: list[int], reserve: int) -> object:
        self.batches += 1
        batch = Batch(f"b-{self.batches}", "p", "o", "p:m", "a", "building")
        intents = [intent(n, reserve) for n in numbers]
        begun = self.ledger.begin_batch(batch, intents, Run("a"), Budget(self.step, self.project)).result()
        return self._sent(numbers, reserve, begun)

    def _sent(self, numbers: list[int], reserve: int, begun: list[object]) -> object:
        pairs = zip(numbers, begun, strict=True)
        return multiple(*((there, n, reserve) for n, there in pairs if isinstance(there, int)))

    @rule(done=st.lists(consumes(attempts), max_size=3), share=st.floats(0, 1), twice=st.booleans())
    def finish(self, done: list[tuple[int, int, int]], share: float, twice: bool) -> None:
        finished = [
            Finished(attempt, request(n).key, REPLY, int(reserve * share)) for attempt, n, reserve in done
        ]
        for _ in range(1 + twice):
            self.ledger.finish_many(finished).result()

    @rule(
        done=st.lists(consumes(attempts), max_size=3),
        state=st.sampled_from(["error", "cancelled", "timeout", "in_doubt"]),
    )
    def fail(self, done: list[tuple[int, int, int]], state: str) -> None:
        self.ledger.fail_many([Ended(attempt, state, "why") for attempt, _, _ in done]).result()  # type: ignore[arg-type]

    @rule(one=attempts)
    def time_out_and_answer_later(self, one: tuple[int, int, int]) -> None:
        self.ledger.fail_many([Ended(one[0], "timeout", "timeout")]).result()

    @rule()
    def crash(self) -> None:
        self.ledger.close()
        self.ledger = Ledger.open(self.path)

    @rule()
    def recover(self) -> None:
        self.ledger.recover()
        assert self.ledger.recover().calls == 0

    @invariant()
    def sums_are_those_of_the_attempts(self) -> None:
        for run, pattern in (("a", "a"), ("b", "b"), (None, "%")):
            row = self.ledger.read(lambda c, p=pattern: c.execute(_SUMS, (p,)).fetchone())
            assert self.ledger.spend(run) == Spend(*(value or 0 for value in row))

    @invariant()
    def no_limit_is_crossed(self) -> None:
        for run, limit in (("a", self.step), ("b", self.step), (None, self.project)):
            spend = self.ledger.spend(run)
            assert 0 <= spend.settled + spend.reserved + spend.doubt <= limit

    @invariant()
    def each_open_attempt_holds_its_request_and_nothing_else_does(self) -> None:
        held = "SELECT key, attempt, batch FROM lease ORDER BY attempt"
        open_ = "SELECT key, id, batch FROM attempt WHERE state IN ('inflight', 'batched') ORDER BY id"
        assert self.ledger.read(lambda c: c.execute(held).fetchall() == c.execute(open_).fetchall())


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


SPENDER = """
import json, random, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_budget import REPLY, RUN, intent, request
from zephyrctl.ledger.entries import Budget, Ended, Finished, Leased, NoRoom
from zephyrctl.ledger.ledger import Ledger
dice = random.Random(int(sys.argv[3]))
budget = Budget(step=int(sys.argv[4]), project=2 * int(sys.argv[4]))
sent, refused, over = [], 0, 0
numbers = list(range(400))
dice.shuffle(numbers)
sys.stdin.readline()
with Ledger.open(Path(sys.argv[1])) as ledger:
    while numbers and refused < 30:
        some, numbers = numbers[:5], numbers[5:]
        begun = ledger.begin_many([intent(n, 10) for n in some], RUN, budget).result()
        going = [(a, n) for a, n in zip(begun, some, strict=True) if isinstance(a, int)]
        for there, n in zip(begun, some, strict=True):
            refused += isinstance(there, NoRoom)
            if isinstance(there, Leased):
                numbers.append(n)
        spend = ledger.spend(RUN.id)
        over = max(over, spend.spent + spend.reserved)
        cut = dice.randrange(len(going) + 1)
        sent += [n for a, n in going[:cut]]
        ledger.finish_many([Finished(a, request(n).key, REPLY, dice.randrange(11)) for a, n in going[:cut]]).result()
        states = [(a, n, dice.choice(["error", "timeout", "in_doubt"])) for a, n in going[cut:]]
        ledger.fail_many([Ended(a, state, "why") for a, n, state in states]).result()
json.dump({"answered": sent, "over": over, "refused": refused}, sys.stdout)
"""


def test_four_processes_never_cross_one_limit_and_pay_once(tmp_path: Path) -> None:
    limit = 800
    path, here = tmp_path / "l", str(Path(__file__).parent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(path), here, str(n), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * 4
    answered = [n for one in told for n in one["answered"]]
    assert len(answered) == len(set(answered))
    assert max(one["over"] for one in told) <= limit
    assert any(one["refused"] for one in told)
    with Ledger.open(path) as ledger:
        spend = ledger.spend("run")
        assert spend == ledger.spend()
        assert spend.reserved == 0
        # what is left is less than one more call, or everything was asked
        assert limit - 10 < spend.spent <= limit
        assert ledger.stats("run").calls == len(answered)
        row = ledger.read(lambda c: c.execute(_SUMS, ("%",)).fetchone())
        assert spend == Spend(*row)
