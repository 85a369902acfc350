"""One wave of asks: what is known is replayed, what is missing goes online, into a batch, or to a local model."""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.errors import StageRejected
from zephyrctl.providers.base import UNPAID, Answer, AnyProvider, Ask, Batching, BatchProvider, Failure
from zephyrctl.providers.calling.batching import run_batches
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.providers.calling.progress import Meter
from zephyrctl.providers.calling.purse import unpriced
from zephyrctl.providers.calling.switchboard import Switchboard
from zephyrctl.providers.calling.wave import Wave

_SLICE = 512
_PROBE = 20
_PROBE_SHARE = 0.05
_WORTH_A_BATCH = 100


class Asking:
    """The work of one `ask_all`, done in the thread that asks."""

    def __init__(self, board: Switchboard, task: str, pairs: Sequence[tuple[AnyProvider, Ask]]) -> None:
        self._board = board
        board.purse.open()
        self._task = task
        self._pairs = pairs
        self._providers = {id(provider): provider for provider, _ in pairs}.values()
        local = bool(pairs) and all(isinstance(provider, BatchProvider) for provider in self._providers)
        self._meter = Meter(board.emit, task, len(pairs), board.purse, local=local)
        self._jobs: dict[str, Job] = {}
        self._results: dict[str, Result] = {}
        self._replayed: list[str] = []
        self._wave: Wave | None = None

    def run(self) -> list[Result]:
        """The results, in order."""
        try:
            order = self._answer()
        except BaseException as error:
            if self._wave is not None:  # nobody waits for its calls any more
                self._board.give_up(error)
            raise
        results = [self._results[job.key] for job in order]
        for job in self._jobs.values():
            self._board.watch.look(job, self._results[job.key])
        self._board.watch.compare(self._pairs, order, results)
        self._meter.tell()
        return results

    def _answer(self) -> list[Job]:
        """The job of each pair, in order, once all of them are settled."""
        board, pairs = self._board, self._pairs
        streams = self._streams()
        order: list[Job] = []
        later: list[Job] = []
        for start in range(0, len(pairs), _SLICE):
            board.check()
            missing = self._replay(pairs[start : start + _SLICE], order)
            if missing and streams:
                self._send(missing)
            else:
                later.extend(missing)
        if board.settings.replay:
            for job in later:
                self._settle(job, Failure(UNPAID, "it is not in the ledger, and nothing is asked", job.key))
            return order
        used = board.ledger.used(board.run, self._replayed)
        if later:
            self._ask_for(later)
        self._collect()
        used.result()
        return order

    def _replay(self, pairs: Sequence[tuple[AnyProvider, Ask]], order: list[Job]) -> list[Job]:
        """The jobs of these pairs that are new and not in the ledger; the others are settled."""
        fresh: dict[str, Job] = {}
        for provider, ask in pairs:
            job = self._board.job(provider, ask)
            order.append(job)
            if job.key not in self._jobs:
                self._jobs[job.key] = fresh[job.key] = job
        self._meter.expect(job.key for job in order[-len(pairs) :])
        self._meter.begin()
        known = self._board.ledger.known(fresh)
        self._replayed.extend(known)
        missing = []
        for key, job in fresh.items():
            reply = known.get(key)
            if reply is None:
                missing.append(job)
            else:
                self._settle(job, job.answer(reply, replayed=True))
        return missing

    def _streams(self) -> bool:
        """Whether calls may go out before the whole wave is read: nothing about them depends on the rest."""
        settings = self._board.settings
        if settings.replay or settings.mode != "online":
            return False
        for provider in self._providers:
            if isinstance(provider, BatchProvider) or getattr(provider, "offline", False):
                return False
            if provider.price is None and settings.budget.limited:
                return False
        return True

    def _ask_for(self, missing: list[Job]) -> None:
        board = self._board
        for job in missing:
            if job.provider.price is None and board.settings.budget.limited:
                raise unpriced(job.provider)
        self._refuse_offline(missing)
        online = [job for job in missing if not job.line.local]
        if online and board.settings.mode != "online":
            online = self._in_bulk(online)
        if online:
            self._send(online)
        local: dict[int, list[Job]] = {}
        for job in self._jobs.values():
            if job.line.local:
                local.setdefault(id(job.provider), []).append(job)
        for jobs in local.values():
            self._compute(jobs)

    def _compute(self, jobs: list[Job]) -> None:
        board = self._board
        if all(job.key in self._results for job in jobs):
            return
        board.recover()
        with board.model_lock(jobs[0].provider):
            run_batches(
                board.ledger,
                board.run,
                jobs,
                known=self._results,
                settle=self._settle,
                stopped=lambda: board.stopped,
                max_wait=board.settings.retry.max_wait,
            )
        board.check()

    def _refuse_offline(self, missing: list[Job]) -> None:
        offline = [job for job in missing if getattr(job.provider, "offline", False)]
        if offline:
            from zephyrctl.providers.calling.bulk import write_down

            raise write_down(self._board.ledger, self._board.run, offline)

    # --- online ---

    def _send(self, jobs: list[Job]) -> None:
        """Hand jobs to the event loop; `_collect` waits for them."""
        thread, engine = self._board.loop()
        for job in jobs:
            job.bound()
        if self._wave is None:
            self._wave = Wave(self._meter)
            thread.loop.call_soon_threadsafe(engine.open, self._wave)
        thread.loop.call_soon_threadsafe(engine.add, self._wave, jobs)

    def _collect(self) -> None:
        if self._wave is None:
            return
        thread, engine = self._board.loop()
        wave, self._wave = self._wave, None
        thread.loop.call_soon_threadsafe(engine.seal, wave)
        wave.done.result()
        self._results.update(wave.results)

    # --- in bulk ---

    def _in_bulk(self, jobs: list[Job]) -> list[Job]:
        """Jobs whose provider takes batches are answered so; the others come back.

        A few jobs are not worth up to a day of waiting: not in mode `auto`, and in mode `batch` not once a batch was
        made (what follows are questions asked again).
        """
        board = self._board
        able = [job for job in jobs if isinstance(job.provider, Batching)]
        rest = [job for job in jobs if not isinstance(job.provider, Batching)]
        auto = board.settings.mode == "auto"
        if rest and not auto:
            board.asked_online(job.provider for job in rest)
        if able and not self._handed_in(able):
            if auto:
                able = self._probed(able)
            if len(able) < _WORTH_A_BATCH and (auto or board.batched):
                return [*rest, *able]
        if not able:
            return rest
        board.batched = True
        return [*rest, *self._bulk(able)]

    def _probed(self, jobs: list[Job]) -> list[Job]:
        """The jobs that are left once a few were tried online; each model is tried once."""
        labels = {job.provider.label for job in jobs} - self._board.probed
        fresh = [job for job in jobs if job.provider.label in labels]
        probe = fresh[: max(1, min(_PROBE, int(_PROBE_SHARE * len(fresh))))] if fresh else []
        if probe:
            self._probe(probe)
            self._board.probed |= labels
        return [job for job in jobs if job.key not in self._results]

    def _handed_in(self, jobs: list[Job]) -> bool:
        """Whether an earlier process has put some of them into a batch: then the probe was made."""
        from zephyrctl.providers.calling.bulk_open import concerning

        return bool(concerning(self._board.ledger, {job.key for job in jobs}))

    def _bulk(self, jobs: list[Job]) -> list[Job]:
        from zephyrctl.providers.calling.bulk import run_bulk

        board = self._board
        thread, engine = board.loop()

        def settle(key: str, result: Result) -> None:
            if isinstance(result, Answer) and not result.replayed:
                board.purse.pay(self._jobs[key].cost(result.tokens))
            self._settle(self._jobs[key], result)

        left = thread.run(
            run_bulk(
                board.ledger,
                board.run,
                jobs,
                settings=board.settings,
                emit=board.emit,
                settle=settle,
                stopping=engine.stopping,
                sleep=board.sleep,
            )
        )
        board.check()
        return left

    def _probe(self, jobs: list[Job]) -> None:
        """A few rows online first: what fails there would fail by the thousand. Raises StageRejected."""
        self._send(jobs)
        self._collect()
        failed = [r for r in (self._results[job.key] for job in jobs) if isinstance(r, Failure)]
        if 2 * len(failed) > len(jobs):
            raise StageRejected(
                f"{len(failed)} of the {len(jobs)} calls of the probe failed ({failed[0].reason}: "
                f"{failed[0].detail}); no batch was handed in",
                hint="--mode online shows row by row what fails; nothing that was paid is lost",
            )

    def _settle(self, job: Job, result: Result) -> None:
        self._results[job.key] = result
        self._meter.add(job.key, result)
