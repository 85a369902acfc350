"""What came out of a step: what is counted, when it is rejected, and what is said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.errors import StageRejected
from zephyrctl.events import Note, Warning_
from zephyrctl.judges.audit import Audit
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.tally import Tally

AUDIT = "audit"
"""What the manifest calls the judge's habits."""
_CUT_OFF_WARNING = 0.01
"""Share of completions, or of judgements, cut off at their limit above which it is said loudly."""


@dataclass
class Yield:
    """What came out so far: prompts kept, rejects as stored and by reason, the tally of calls and ratings."""

    tally: Tally = field(default_factory=Tally)
    rejects: list[Mapping[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def reject(self, row: Mapping[str, Any]) -> None:
        """Takes note of a prompt that gives no row."""
        self.rejects.append(row)
        self.reasons[str(row["reason"])] += 1

    def counts(self, prompts: int, bad_rows: int) -> dict[str, Any]:
        """For the manifest: prompts = kept + dropped; completions and ratings add up as `Tally` says."""
        tally = self.tally
        counts: dict[str, Any] = {
            "prompts": prompts,
            "kept": self.kept,
            "dropped": _sorted(self.reasons),
            "bad_rows": bad_rows,
            "completions": {
                "asked": tally.completions_asked,
                "kept": tally.completions_kept,
                "left_out": _sorted(tally.left_out),
            },
            "ratings": {
                "asked": tally.ratings_asked,
                "rated": tally.rated,
                "not_applicable": tally.not_applicable,
                "unscored": _sorted(tally.unscored),
            },
            "judge_requests": tally.judge_calls,
            "judgements_cut_off": tally.cut_judgements,
            "repairs": {"asked": tally.repaired, "mended": tally.repaired_ok},
        }
        if tally.principles:
            counts["principles"] = _sorted(tally.principles)
        return counts


def judge_outcome(config: GenPrefsConfig, work: Work, tally: Tally) -> None:
    """Says what is missing. Raises StageRejected where it is more than `max_failures` of the completions or of the
    ratings."""
    lost = tally.left_out.total()
    missing = tally.unscored.total()
    lost_rate = lost / max(1, tally.completions_asked)
    missing_rate = missing / max(1, tally.ratings_asked)
    worst = max(lost_rate, missing_rate)
    told = f"{lost} of {tally.completions_asked} completions left out {_told(tally.left_out)}"
    rated = f"{missing} of {tally.ratings_asked} ratings missing {_told(tally.unscored)}"
    if worst > config.max_failures:
        raise StageRejected(
            f"gen-prefs: more than the {config.max_failures:.0%} allowed failed: {told}; {rated}",
            hint=f"--set max_failures={min(1.0, worst + 0.05):.2f} accepts it; what was paid is kept",
        )
    cut = tally.left_out["cut_off"] + tally.left_out["reasoning_cut"]
    if cut > _CUT_OFF_WARNING * tally.completions_asked:
        work.emit(
            Warning_(
                f"{cut} of {tally.completions_asked} completions were cut off at "
                f"max_tokens={config.max_tokens} and left out; --set max_tokens=… asks for longer ones"
            )
        )
    if tally.cut_judgements > _CUT_OFF_WARNING * tally.judgements:
        work.emit(
            Warning_(
                f"{tally.cut_judgements} of {tally.judgements} judgements were cut off at "
                f"judge_max_tokens={config.judge_max_tokens}; --set judge_max_tokens=… asks for longer ones"
            )
        )
    work.emit(Note(f"{told}; {rated}; {tally.not_applicable} not applicable"))


def tell_audit(work: Work, audit: Audit, staging: Staging) -> None:
    """Puts the habits of the judge into the manifest, and tells them."""
    report = audit.report()
    sentences = report.sentences()
    staging.extra[AUDIT] = report.as_dict() | {"sentences": sentences}
    for table in report.tables():
        work.emit(table)
    for sentence in sentences:
        work.emit(Note(sentence))


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _told(reasons: Counter[str]) -> str:
    return "(" + (", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "none") + ")"
