"""Who asks what: a request in flight is asked by nobody else, until its process is gone; then it counts as in doubt."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zephyrctl.ledger.entries import (
    Begun,
    Ended,
    Finished,
    Intent,
    Leased,
    Recovered,
    Request,
    Run,
    Spend,
    StoredReply,
)
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.ledger.owner import PATIENCE_SECONDS, Owner, Watch, is_dead, this_process

RUN = Run("run", "gen-sft")
REPLY = StoredReply(b"answer", "text", "stop", None, "m-1")
HERE = socket.gethostname()


def request(n: int) -> Request:
    return Request.of(provider="p", origin="o", endpoint="e", model="p:m", body={"n": n}, draw=0)


def begin(ledger: Ledger, *numbers: int, run: Run = RUN) -> list[Begun]:
    return ledger.begin_many([Intent(request(n), 10) for n in numbers], run).result()


OTHER = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_ledger_leases import begin
from zephyrctl.ledger.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
begin(ledger, 0, 1, 2)
os.write(1, b"begun\\n")
sys.stdin.readline()
ledger.close()
"""


def other_process(path: Path) -> subprocess.Popen[str]:
    """A process that has three requests in flight."""
    command = [sys.executable, "-c", OTHER, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


def test_what_a_living_process_asks_is_not_asked_twice(tmp_path: Path) -> None:
    other = other_process(tmp_path / "l")
    with Ledger.open(tmp_path / "l") as ledger:
        begun = begin(ledger, 0, 5)
        assert begun[0] == Leased(request(0).key, HERE, other.pid)
        assert isinstance(begun[1], int)
        assert ledger.recover() == Recovered()
        other.send_signal(signal.SIGKILL)
        other.communicate()
        # one is taken over as it is needed, the rest when somebody asks what was lost
        assert isinstance(begin(ledger, 0)[0], int)
        assert ledger.in_doubt("run") == {("p", "o", "p:m"): (1, 10)}
        assert ledger.recover() == Recovered(2, 20)
        assert ledger.recover() == Recovered()
        assert ledger.stats("run").states == {"in_doubt": 3, "inflight": 2}
        assert ledger.spend() == Spend(reserved=20, doubt=30)


def test_a_killed_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    other = other_process(tmp_path / "l")
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.recover() == Recovered(3, 30)
    other.communicate()


def test_what_a_process_left_when_it_ended_in_good_order_is_in_doubt(tmp_path: Path) -> None:
    other = other_process(tmp_path / "l")
    other.communicate("\n")
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.recover() == Recovered(3, 30)


def test_two_ledgers_of_one_process_are_two_owners(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as one, Ledger.open(tmp_path / "l") as two:
        (attempt,) = begin(one, 0)
        assert isinstance(attempt, int)
        assert begin(two, 0) == begin(one, 0) == [Leased(request(0).key, HERE, os.getpid())]
        assert one.recover() == two.recover() == Recovered()
        one.finish_many([Finished(attempt, request(0).key, REPLY, 1)]).result()
        assert begin(two, 0) == [REPLY]


def test_what_a_closed_ledger_had_in_flight_is_taken_over(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as two:
        with Ledger.open(tmp_path / "l") as one:
            (lost,) = begin(one, 0)
        (attempt,) = begin(two, 0)
        assert isinstance(lost, int)
        assert isinstance(attempt, int)
        assert two.spend() == Spend(reserved=10, doubt=10)
        # its reply arrives after all: it holds, and is no longer in doubt
        two.finish_many([Finished(lost, request(0).key, REPLY, 3)]).result()
        assert two.spend() == Spend(settled=3, reserved=10)
        two.fail_many([Ended(attempt, "cancelled", "answered")]).result()
        assert two.spend() == Spend(settled=3)
        assert begin(two, 0) == [REPLY]


@pytest.mark.parametrize("state", ["error", "cancelled", "timeout", "in_doubt"])
def test_an_ended_attempt_frees_its_request(tmp_path: Path, state: str) -> None:
    with Ledger.open(tmp_path / "l") as one, Ledger.open(tmp_path / "l") as two:
        (attempt,) = begin(one, 0)
        assert isinstance(attempt, int)
        one.fail_many([Ended(attempt, state, "why")]).result()  # type: ignore[arg-type]
        assert isinstance(begin(two, 0)[0], int)
        # told once more, too late: the request stays with its new owner
        one.fail_many([Ended(attempt, state, "why")]).result()  # type: ignore[arg-type]
        assert isinstance(begin(one, 0)[0], Leased)


def test_a_request_named_twice_in_one_go_is_begun_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "l") as ledger:
        begun = begin(ledger, 0, 0)
        assert isinstance(begun[0], int)
        assert begun[1] == Leased(request(0).key, HERE, os.getpid())
        assert ledger.spend() == Spend(reserved=10)


def test_owners() -> None:
    me = this_process()
    assert not is_dead(me)
    assert not is_dead(Owner("another host", me.boot_id, 1, ""))
    assert is_dead(Owner(me.host, "an earlier boot", me.pid, me.started))
    assert is_dead(Owner(me.host, me.boot_id, 2**22 + 5, ""))
    if me.started:
        assert is_dead(Owner(me.host, me.boot_id, me.pid, me.started + "1"))


def test_an_owner_on_another_machine_is_gone_when_its_counter_stands_still() -> None:
    now = 0.0
    watch = Watch(clock=lambda: now)
    there = Owner("another host", "a boot", 1, "")
    assert not watch.gone(7, there, 3)
    now = PATIENCE_SECONDS
    assert not watch.gone(7, there, 3)
    assert not watch.gone(7, there, 4)
    now = 2 * PATIENCE_SECONDS
    assert not watch.gone(7, there, 4)
    assert not watch.gone(8, there, 4)
    now += 1.0
    assert watch.gone(7, there, 4)
    assert not watch.gone(8, there, 4)


def test_a_living_owner_beats_also_when_it_only_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zephyrctl.ledger.ledger.BEAT_SECONDS", 0.02)
    with Ledger.open(tmp_path / "l") as one, Ledger.open(tmp_path / "l") as two:
        begin(one, 0)
        counter = "SELECT MAX(beat) FROM owner"
        for wanted in (1, 2, 3):
            while two.read(lambda c: c.execute(counter).fetchone())[0] < wanted:
                time.sleep(0.005)
