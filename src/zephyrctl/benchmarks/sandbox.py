"""The sandbox's three suites over one set of prompts: judged 1-10, win rate against a baseline, exact
answers.

They follow the paper's three yardsticks: `judged` is built like MT-Bench (every turn graded by itself,
later turns after the model's own answers), `win_rate` like AlpacaEval (first turns only, against one
baseline), `exact` stands where the academic tasks stand. The prompts are the eval side of the sandbox
world: no training prompt is among them.
"""

from dataclasses import dataclass

from zephyrctl.benchmarks.base import NO_JUDGE, Benchmark, Grading, Item, Transcript, draft, settled, turns
from zephyrctl.judges import pairwise, single
from zephyrctl.records import Verdict
from zephyrctl.sandbox import world

LABEL = "sandbox scores measure the machinery, not language models"
IDENTICAL = "identical answers"
EMPTY = "empty answer"


def sandbox_items(rows: int, seed: int) -> list[Item]:
    """`rows` prompts of the world's eval side, balanced over its families."""
    return [Item(task.family, task.turns) for task in world.eval_tasks(rows, seed)]


class OnSandboxPrompts:
    """The prompts that the three suites share."""

    def items(self, rows: int, seed: int) -> list[Item]:
        """See `Benchmark.items`."""
        return sandbox_items(rows, seed)


@dataclass(frozen=True)
class JudgedSuite(OnSandboxPrompts):
    """Each turn's answer graded 1-10 by itself. An empty answer gets 1 unasked: silence must not gain."""

    name: str = "judged"
    scale: tuple[float, float] = (1.0, 10.0)
    judged: bool = True
    compares: bool = False

    def gradings(self, transcript: Transcript, baseline: Transcript | None, judge: str) -> list[Grading]:
        """One grading per turn."""
        found = []
        for turn in turns(transcript):
            verdict = draft(self.name, transcript, turn, judge)
            if verdict.reason is not None:
                found.append(Grading(verdict))
            elif not verdict.answer.strip():
                found.append(settled(verdict, self.scale[0], EMPTY))
            else:
                found.append(Grading(verdict, single.prompt(transcript.before(turn), verdict.answer)))
        return found

    def read(self, grading: Grading, reply: str) -> Verdict:
        """See `Benchmark.read`."""
        parsed = single.parse(reply)
        return grading.verdict.model_copy(
            update={"score": parsed.value, "critique": parsed.rationale, "reason": parsed.reason}
        )


@dataclass(frozen=True)
class WinRateSuite(OnSandboxPrompts):
    """First-turn answers against the baseline's, in both orders; 1 won, 0.5 tie, 0 lost.

    Equal answers are a tie and an empty answer loses, both unasked.
    """

    name: str = "win_rate"
    scale: tuple[float, float] = (0.0, 1.0)
    judged: bool = True
    compares: bool = True

    def gradings(self, transcript: Transcript, baseline: Transcript | None, judge: str) -> list[Grading]:
        """Two gradings: the model's answer shown first (`AB`), then second (`BA`).

        Raises ValueError without a baseline.
        """
        if baseline is None:
            raise ValueError("a win rate needs the baseline's answers")
        theirs = baseline.replies[0]
        found = []
        for order in ("AB", "BA"):
            verdict = draft(self.name, transcript, 1, judge, reference=theirs.text, order=order)
            if theirs.text is None:
                reason = f"the baseline gave no answer: {theirs.reason or 'unknown'}"
                found.append(Grading(verdict.model_copy(update={"reason": verdict.reason or reason})))
            elif verdict.reason is not None:
                found.append(Grading(verdict))
            else:
                found.append(self._compare(verdict, transcript, theirs.text))
        return found

    def _compare(self, verdict: Verdict, transcript: Transcript, theirs: str) -> Grading:
        ours = verdict.answer
        if ours == theirs:
            return settled(verdict, 0.5, IDENTICAL)
        if not ours.strip() or not theirs.strip():
            score = 0.5 if ours.strip() == theirs.strip() else float(bool(ours.strip()))
            return settled(verdict, score, EMPTY)
        first, second = (ours, theirs) if verdict.order == "AB" else (theirs, ours)
        return Grading(verdict, pairwise.prompt(transcript.before(1), first, second))

    def read(self, grading: Grading, reply: str) -> Verdict:
        """See `Benchmark.read`."""
        parsed = pairwise.read(reply)
        if parsed.letter is None:
            score = None
        elif parsed.letter == "tie":
            score = 0.5
        else:
            score = float((parsed.letter == "A") == (grading.verdict.order == "AB"))
        return grading.verdict.model_copy(
            update={"score": score, "critique": parsed.rationale, "reason": parsed.reason}
        )


@dataclass(frozen=True)
class ExactSuite(OnSandboxPrompts):
    """Each turn's answer against the world's right answer, which is the `reference`: 1 or 0."""

    name: str = "exact"
    scale: tuple[float, float] = (0.0, 1.0)
    judged: bool = False
    compares: bool = False

    def gradings(self, transcript: Transcript, baseline: Transcript | None, judge: str) -> list[Grading]:
        """One settled grading per turn."""
        found = []
        for turn in turns(transcript):
            asked = transcript.item.turns[:turn]
            verdict = draft(self.name, transcript, turn, NO_JUDGE, reference=world.solve(asked))
            if verdict.reason is not None:
                found.append(Grading(verdict))
            else:
                found.append(settled(verdict, float(world.grade(asked, verdict.answer))))
        return found

    def read(self, grading: Grading, reply: str) -> Verdict:
        """Never needed: every grading is settled."""
        return grading.verdict


def sandbox_suites() -> tuple[Benchmark, ...]:
    """The suites in the order of the paper's Table 3: judged, win rate, exact."""
    return (JudgedSuite(), WinRateSuite(), ExactSuite())
