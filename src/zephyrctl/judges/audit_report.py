"""A judge audit as people read it: tables, sentences, a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zephyrctl.events import Table

FOUND = 0.01
"""Below this p-value an effect counts as found."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit shows. `body` is ready for JSON; its keys are the questions asked of the judge."""

    body: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The document, as the manifest keeps it."""
        return dict(self.body)

    def found(self) -> dict[str, bool]:
        """Whether place and length go along with the ratings (p < 0.01)."""
        position = self.body["position"]
        return {
            "position": position is not None and _below(position["p"]),
            "length": _below(self.body["length"]["p"]),
        }

    def sentences(self) -> list[str]:
        """What a reader should know, most telling first."""
        return [
            *self._position(),
            *self._length(),
            *self._longer(),
            *self._family(),
            *self._scores(),
            *self._agreement(),
        ]

    def tables(self) -> list[Table]:
        """Ratings by place and by length, what could not be read, and how far further judgements agree."""
        return [
            t
            for t in (self._place_table(), self._length_table(), self._rate_table(), self._again_table())
            if t
        ]

    def _position(self) -> list[str]:
        position = self.body["position"]
        if position is None or position["p"] is None:
            return []
        trend = position["first_less_last"]
        if not _below(position["p"]):
            return [
                f"no effect of the place shown was found (first less last {trend:+.2f} points, {_p(position['p'])})"
            ]
        if _below(2 * position["p_trend"]):
            side = "higher" if trend > 0 else "lower"
            told = f"{abs(trend):.2f} points {side} than those shown last ({_p(position['p'])})"
            return [f"texts shown first are rated {told}"]
        return [f"ratings depend on the place shown, not along a line ({_p(position['p'])}): see the table"]

    def _length(self) -> list[str]:
        said = []
        for source, found in self._sources("length"):
            slope, p = found[found["test"]]["slope"], found["p"]
            if slope is None:
                continue
            told, equal = f"{slope:+.2f} points per doubling ({_p(p)})", found["test"] == "equal_merit"
            among = (
                "among equally good texts of a prompt"
                if equal
                else "among a prompt's texts, authors held equal"
            )
            if not _below(p):
                said.append(f"no effect of the length on the {_named(source)} was found {among}: {told}")
                continue
            side = "higher" if slope > 0 else "lower"
            fault = "" if equal else "; they go together, which need not be the judge's fault"
            said.append(f"longer texts get a {side} {_named(source)} {among}: {told}{fault}")
        return said

    def _longer(self) -> list[str]:
        return [
            f"a judge that picks the longer answer agrees with {found['agrees']:.0%} of these pairs "
            f"({found['pairs']:,}, by {_named(source)})"
            for source, found in self.body["longer"].items()
            if found["agrees"] is not None
        ]

    def _family(self) -> list[str]:
        if self.body["family"] is None:
            return []
        said = []
        for source, found in self._sources("family"):
            if found["difference"] is not None:
                said.append(
                    f"texts by the judge's own family ({self.body['family']['judge']}) differ by "
                    f"{found['difference']:+.2f} points in {_named(source)} from others' answers to the same prompt "
                    f"({_p(found['p'])}); that can be favour or merit"
                )
        return said

    def _scores(self) -> list[str]:
        said = []
        for source in ("mean", "overall"):
            tied = self.body["ties"].get(source)
            if tied:
                said.append(
                    f"{tied['rate']:.0%} of {tied['rows']:,} prompts have no single best text by {_named(source)}"
                )
        both = self.body["disagreement"]
        if both["rows"]:
            told = f"{both['best_differs']:.0%} of {both['rows']:,} prompts"
            said.append(f"aspects and overall score disagree on the best text of {told}")
        return said

    def _agreement(self) -> list[str]:
        said = []
        for name, found in self.body["agreement"].items():
            rows = f"{found['rows']:,} prompts"
            who = (
                f"asked again about {rows}, the judge" if name == "retest" else f"{name}, asked about {rows},"
            )
            if found["same_best"] is None:
                said.append(f"{who} gave no scores that could be compared")
                continue
            tau = found["kendall_tau_b"]
            ranked = "" if tau is None else f" (tau-b {tau:.2f})"
            said.append(f"{who} picks the same best text for {found['same_best']:.0%} of them{ranked}")
        return said

    def _sources(self, question: str) -> list[tuple[str, Mapping[str, Any]]]:
        part = self.body[question]
        return [(name, part[name]) for name in ("mean", "overall") if name in part]

    def _place_table(self) -> Table | None:
        position = self.body["position"]
        if position is None:
            return None
        places = sorted(position["places"], key=int)
        rows = [("all aspects", position), *position["aspects"].items()]
        return Table(
            f"mean rating by place shown ({self.body['judge']})",
            ("aspect", *places, "first less last", "p"),
            tuple(
                (
                    name,
                    *(_number(found["places"].get(place, {}).get("mean")) for place in places),
                    _number(found["first_less_last"], "+.2f"),
                    _number(found["p"], ".2g"),
                )
                for name, found in rows
            ),
        )

    def _length_table(self) -> Table | None:
        by_source = dict(self._sources("length"))
        if not by_source:
            return None
        deciles: dict[tuple[int, int, int], dict[str, Any]] = {}
        for source, found in by_source.items():
            for one in found["deciles"]:
                deciles.setdefault((one["decile"], one["shortest"], one["longest"]), {})[source] = one["mean"]
        return Table(
            "mean score by length (characters)",
            ("decile", "from", "to", *map(_named, by_source)),
            tuple(
                (str(decile), f"{low:,}", f"{high:,}", *(_number(means.get(source)) for source in by_source))
                for (decile, low, high), means in sorted(deciles.items())
            ),
        )

    def _rate_table(self) -> Table | None:
        if not self.body["ratings"]:
            return None
        return Table(
            "ratings",
            ("aspect", "asked", "rated", "not applicable", "unread", "mean"),
            tuple(
                (
                    name,
                    f"{found['asked']:,}",
                    f"{found['rated']:,}",
                    f"{found['not_applicable']:,}",
                    f"{sum(found['unread'].values()):,}",
                    _number(found["mean"]),
                )
                for name, found in self.body["ratings"].items()
            ),
        )

    def _again_table(self) -> Table | None:
        if not self.body["agreement"]:
            return None
        return Table(
            "further judgements",
            (
                "who",
                "why",
                "prompts",
                "same best",
                "tau-b",
                "aspects equal",
                "within 1",
                "apart",
                "overall apart",
            ),
            tuple(
                (
                    "the judge again" if name == "retest" else name,
                    _whys(found),
                    f"{found['rows']:,}",
                    _number(found["same_best"], ".0%"),
                    _number(found["kendall_tau_b"]),
                    _number(found["aspects"]["exact"], ".0%"),
                    _number(found["aspects"]["within_one"], ".0%"),
                    _number(found["aspects"]["mean_distance"]),
                    _number(found["overall"]["mean_distance"]),
                )
                for name, found in self.body["agreement"].items()
            ),
        )


def _below(p: float | None) -> bool:
    return p is not None and p < FOUND


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _named(source: str) -> str:
    return "mean of the aspects" if source == "mean" else "overall score"


def _whys(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{why} ({rows:,})" for why, rows in found["why"].items())


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
