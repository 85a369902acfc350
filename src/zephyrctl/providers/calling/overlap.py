"""Several parts of a stage's work at once, so that the slow calls of one do not hold up the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

P = TypeVar("P")
R = TypeVar("R")


def overlapping(
    parts: Sequence[P], work: Callable[[P], R], ahead: int, give_up: Callable[[BaseException], None]
) -> Iterator[R]:
    """The results of `work(part)` in order; at most `ahead` parts beyond the one waited for are begun.

    `give_up` is told the first error of any part, and must make the others end soon; then that error is raised.
    """
    threads = ThreadPoolExecutor(ahead + 1, thread_name_prefix="part")
    errors: list[BaseException] = []

    def one(part: P) -> R:
        try:
            return work(part)
        except BaseException as error:
            errors.append(error)
            give_up(error)
            raise

    rest = iter(parts)
    begun: deque[Future[R]] = deque()
    done = False
    try:
        while True:
            for part in rest:
                begun.append(threads.submit(one, part))
                if len(begun) > ahead:
                    break
            if not begun:
                done = True
                return
            try:
                result = begun[0].result()
            except Exception:
                # A later part may have failed first and have made this one end.
                raise errors[0] from None
            begun.popleft()
            yield result
    finally:
        if not done:
            give_up(errors[0] if errors else GeneratorExit("the results are not wanted any more"))
        threads.shutdown(wait=True, cancel_futures=True)
