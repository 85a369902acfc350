"""A judge audit as people read it: tables, sentences, a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zephyrctl.events import Table
from zephyrctl.judges.permutation import FEW

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
        """Ratings by aspect and place, scores by length, and how far further judgements agree."""
        return [t for t in (self._rating_table(), self._length_table(), self._again_table()) if t]

    def _position(self) -> list[str]:
        position = self.body["position"]
        if position is None or position["p"] is None:
            return []
        trend = position["first_less_last"]
        if not _below(position["p"]):
            none_found = _none_found("place shown", position["prompts"])
            return [f"{none_found} (first less last {trend:+.2f} points, {_p(position['p'])})"]
        if _below(2 * position["p_trend"]):
            side = "higher" if trend > 0 else "lower"
            told = f"{abs(trend):.2f} points {side} than those shown last ({_p(position['p'])})"
            return [f"texts shown first are rated {told}"]
        return [f"ratings depend on the place shown, not along a line ({_p(position['p'])}): see the table"]

    def _length(self) -> list[str]:
        said = []
        idle: dict[str, list[str]] = {}
        for source, found in self._sources("length"):
            slope, p = found[found["test"]]["slope"], found["p"]
            if slope is None:
                continue
            equal = found["test"] == "equal_merit"
            among = (
                "among equally good texts of a prompt"
                if equal
                else "among a prompt's texts, authors held equal"
            )
            told = f"{slope:+.2f} points per doubling ({_p(p)})"
            if not _below(p):
                none_found = _none_found("length", found[found["test"]]["prompts"])
                idle.setdefault(f"{none_found} {among}", []).append(f"{_named(source)} {told}")
                continue
            side = "higher" if slope > 0 else "lower"
            fault = "" if equal else "; they go together, which need not be the judge's fault"
            said.append(f"longer texts get a {side} {_named(source)} {among}: {told}{fault}")
        return said + [f"{none_found}: {', '.join(told)}" for none_found, told in idle.items()]

    def _longer(self) -> list[str]:
        told = [
            f"{found['agrees']:.0%} of these pairs ({found['pairs']:,}, by {_named(source)})"
            for source, found in self.body["longer"].items()
            if found["agrees"] is not None
        ]
        return [f"a judge that picks the longer answer agrees with {' and '.join(told)}"] if told else []

    def _family(self) -> list[str]:
        if self.body["family"] is None:
            return []
        told = [
            f"{found['difference']:+.2f} points in {_named(source)} ({_p(found['p'])})"
            for source, found in self._sources("family")
            if found["difference"] is not None
        ]
        family = self.body["family"]["judge"]
        return [
            f"texts by the judge's own family ({family}) differ from others' answers to the same prompt by "
            f"{' and '.join(told)}; that can be favour or merit"
        ] if told else []  # fmt: skip

    def _scores(self) -> list[str]:
        said = []
        told = [
            f"{tied['rate']:.0%} of {tied['rows']:,} prompts by {_named(source)}"
            for source in ("mean", "overall")
            if (tied := self.body["ties"].get(source))
        ]
        if told:
            said.append(f"no single best text in {' and '.join(told)}")
        both = self.body["disagreement"]
        if both["rows"]:
            told_both = f"{both['best_differs']:.0%} of {both['rows']:,} prompts"
            said.append(f"aspects and overall score disagree on the best text of {told_both}")
        return said

    def _agreement(self) -> list[str]:
        said = []
        for name, found in self.body["agreement"].items():
            rows = "1 prompt" if found["rows"] == 1 else f"{found['rows']:,} prompts"
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

    def _rating_table(self) -> Table | None:
        """For each aspect what was asked and read, the mean at each place shown, and whether places differ."""
        ratings = self.body["ratings"]
        if not ratings:
            return None
        position = self.body["position"] or {"places": {}, "aspects": {}}
        places = sorted(position["places"], key=int)
        shown = {name: position["aspects"].get(name, {}) for name in ratings}
        rows = [(name, *_read(found), *_by_place(shown[name], places)) for name, found in ratings.items()]
        if places:
            rows.append(("all aspects", "", "", "", "", *_by_place(position, places)))
        by_place = (*(f"place {place}" for place in places), "first less last", "p") if places else ()
        return Table(
            f"ratings ({self.body['judge']})",
            ("aspect", "asked", "n/a", "unread", "mean", *by_place),
            tuple(rows),
        )

    def _length_table(self) -> Table | None:
        """Mean scores by tenths of the texts, the shortest first; each with its longest text in characters."""
        by_source = dict(self._sources("length"))
        if not by_source:
            return None
        deciles: dict[tuple[int, int], dict[str, Any]] = {}
        for source, found in by_source.items():
            for one in found["deciles"]:
                deciles.setdefault((one["decile"], one["longest"]), {})[source] = one["mean"]
        found_in = sorted(deciles)
        means = (
            (_named(source), *(_number(deciles[key].get(source)) for key in found_in)) for source in by_source
        )
        return Table(
            "mean score by length, in tenths of the texts",
            ("tenth", *(str(decile) for decile, _ in found_in)),
            (("characters, up to", *(f"{longest:,}" for _, longest in found_in)), *means),
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


def _read(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Of one aspect: asked, not applicable, not read, and the mean of those that were rated."""
    unread = sum(found["unread"].values())
    return f"{found['asked']:,}", f"{found['not_applicable']:,}", f"{unread:,}", _number(found["mean"])


def _by_place(found: Mapping[str, Any], places: Sequence[str]) -> tuple[str, ...]:
    """The mean at each place, the trend, and how likely it is by chance; nothing where no place is known."""
    if not places:
        return ()
    means = (_number(found.get("places", {}).get(place, {}).get("mean")) for place in places)
    return (*means, _number(found.get("first_less_last"), "+.2f"), _number(found.get("p"), ".2g"))


def _below(p: float | None) -> bool:
    return p is not None and p < FOUND


def _none_found(what: str, prompts: int) -> str:
    """What may be said where no effect was found: nothing, of a few prompts."""
    if prompts < FEW:
        return f"too few prompts ({prompts:,}) to say that the {what} has no effect"
    return f"no effect of the {what} was found"


def _p(p: float | None) -> str:
    if p is None:
        return "too few for a p-value"
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _named(source: str) -> str:
    return "mean of the aspects" if source == "mean" else "overall score"


def _whys(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{why} ({rows:,})" for why, rows in found["why"].items())


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
