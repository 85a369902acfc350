"""What an endpoint was asked for and silently left out: found in its replies, told once.

Kinds: `draws` (other draws at a temperature above 0 gave the same text), `logprobs`, `usage`, `schema`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zephyrctl.events import Emit, Warning_
from zephyrctl.providers.base import Answer, AnyProvider, Ask
from zephyrctl.providers.calling.job import Job, Result
from zephyrctl.providers.calling.tally import Tally

_ENOUGH_GROUPS = 3
_LONG_TEXT = 40
"""Letters from which equal texts are no coincidence."""
_MEANING = {
    "logprobs": "replies without the log-probabilities that were asked for",
    "usage": "replies without token counts (they are charged at the most they can cost)",
    "schema": "replies that are not JSON although a schema was asked for",
}


class Watch:
    """Looks at replies and at draws; one per caller."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._groups: dict[int, int] = {}
        """Groups of equal draws by tally; -1 once two draws differed or the warning was given."""

    def look(self, job: Job, result: Result) -> None:
        """Count what one reply lacks."""
        if not isinstance(result, Answer) or job.line.local:
            return
        ignored, dropped = job.line.tally.ignored, job.provider.dropped
        if result.tokens is None:
            ignored["usage"] += 1
        if result.outcome != "text":
            return
        if job.ask.sampling.logprobs is not None and result.logprobs is None and "logprobs" not in dropped:
            ignored["logprobs"] += 1
        if job.ask.schema is not None and "schema" not in dropped and not _is_json(result.text):
            ignored["schema"] += 1

    def compare(
        self, pairs: Sequence[tuple[AnyProvider, Ask]], jobs: Sequence[Job], results: Sequence[Result]
    ) -> None:
        """Compare the draws of equal questions in one wave."""
        if not any(ask.draw for _, ask in pairs):
            return
        groups: dict[tuple[int, Ask], dict[str, str]] = {}
        for (provider, ask), job, result in zip(pairs, jobs, results, strict=True):
            drawn = ask.sampling.temperature > 0 and provider.world == "real"
            if not drawn or job.line.local or not isinstance(result, Answer):
                continue
            if len(result.text) >= _LONG_TEXT:
                question = (id(job.line.tally), _without_draw(ask))
                groups.setdefault(question, {})[job.key] = result.text
        tallies = {id(job.line.tally): job.line.tally for job in jobs}
        for (place, _), texts in groups.items():
            if len(texts) > 1:
                self._draws(tallies[place], same=len(set(texts.values())) == 1)

    def tell(self, tallies: Iterable[Tally]) -> None:
        """At the end: what was left out, with its count."""
        for tally in tallies:
            for kind, meaning in _MEANING.items():
                if tally.ignored[kind]:
                    self._emit(Warning_(f"{tally.model}: {tally.ignored[kind]:,} {meaning}"))

    def _draws(self, tally: Tally, *, same: bool) -> None:
        count = self._groups.get(id(tally), 0)
        if count < 0:
            return
        self._groups[id(tally)] = count + 1 if same else -1
        if same and count + 1 >= _ENOUGH_GROUPS:
            self._groups[id(tally)] = -1
            tally.ignored["draws"] += 1
            self._emit(
                Warning_(
                    f"{tally.model} at {tally.origin}: different draws of the same question are equal texts; the "
                    "server seems to ignore the temperature or to answer from a cache"
                )
            )


def _without_draw(ask: Ask) -> Ask:
    # Seeds differ between draws where the stage seeds them, so they do not make another question.
    sampling = ask.sampling.__class__(**{**ask.sampling.__dict__, "seed": None})
    return Ask(ask.messages, sampling, 0, ask.purpose, None)


def _is_json(text: str) -> bool:
    import json

    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
