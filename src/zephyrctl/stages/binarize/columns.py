"""The fast way from a stored feedback artifact to pairs: Arrow columns in, Arrow columns out.

Only the columns that decide are read. The files of an artifact were checked against their hashes and hold rows that
were validated when they were written, so no row is validated again: a few rules are tried on whole columns, and only
where one fails are the rows of that batch validated one by one, to say what is wrong. Texts are not copied through
Python objects: the output is taken from the columns that were read. The files are the same, byte for byte, as those
made row by row (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.table import arrow_schema
from zephyrctl.artifacts.ultrafeedback import OVERALL
from zephyrctl.artifacts.writer import Staging
from zephyrctl.errors import IntegrityError
from zephyrctl.records import FeedbackRow, PreferenceRow, SftRow, Split, explain
from zephyrctl.stages.binarize.candidates import Asked, Candidate, Rated, candidate
from zephyrctl.stages.binarize.rows import best_id
from zephyrctl.stages.binarize.select import Outcome, Pairing

if TYPE_CHECKING:
    import pyarrow as pa

_COMPLETION = "completions.list.element."
COLUMNS = (
    "prompt_id",
    "prompt",
    *(_COMPLETION + name for name in ("completion_id", "model", "text", "overall")),
    *(f"{_COMPLETION}ratings.list.element.{name}" for name in ("aspect", "value", "reason")),
    "judge",
    "source",
)
ROWS_IN_BATCH = 1024
_ROLES = ("system", "user", "assistant")


@dataclass
class Batch:
    """Some rows of a feedback artifact: `asked` of each, and the pairs and best answers noted for them so far.

    Without `with_ratings` the ratings of the aspects are left out of `asked`; no score but `overall` can do without.
    """

    ref: str
    first: int
    split: Split
    rows: pa.RecordBatch
    with_ratings: bool = True
    _pairs: list[tuple[int, Pairing]] = field(default_factory=list)
    _best: list[tuple[int, int]] = field(default_factory=list)

    def where(self, number: int) -> str:
        """Where a row stands."""
        return f"{self.ref} row {self.first + number}"

    def note(self, number: int, outcome: Outcome) -> None:
        """Takes what became of a row, if it gave a pair."""
        if outcome.best is not None:
            self._pairs += [(number, pairing) for pairing in outcome.pairs]
            self._best.append((number, outcome.best))

    def write(self, pairs: Staging, best: Staging) -> None:
        """Writes the pairs and the best answers that were noted."""
        if self._best:
            pairs.write_batch(self.split, self.preferences())
            best.write_batch(self.split, self.best())

    @cached_property
    def asked(self) -> list[Asked]:
        """What the selection has to know of each row."""
        columns = self._completions
        noted = OVERALL in self.aspects
        ends, rated = [0] * (len(columns["text"]) + 1), list[Rated]()
        if noted or self.with_ratings:
            ends = _ends(columns["ratings"])
            rated = list(
                zip(*(part.to_pylist() for part in columns["ratings"].flatten().flatten()), strict=True)
            )
        candidates = [
            candidate(identity, model, text, overall, rated[start:end])
            if noted
            else Candidate(identity, model, text, overall, None, rated[start:end])
            for identity, model, text, overall, start, end in zip(
                *(columns[name].to_pylist() for name in ("completion_id", "model", "text", "overall")),
                ends,
                ends[1:],
                strict=False,
            )
        ]
        starts, (_, contents), turns = self._starts, self._said, self._turns
        return [
            Asked(identity, source, contents[turns[n + 1] - 1], candidates[starts[n] : starts[n + 1]])
            for n, (identity, source) in enumerate(
                zip(self._list("prompt_id"), self._list("source"), strict=True)
            )
        ]

    @cached_property
    def aspects(self) -> set[str]:
        """What was rated in any row."""
        return set(self._completions["ratings"].flatten().field("aspect").unique().to_pylist())

    def preferences(self) -> pa.RecordBatch:
        """The pairs noted so far, as rows of kind prefs."""
        import pyarrow as pa

        places = pa.array([row for row, _ in self._pairs], pa.int64())
        sides = {
            "chosen": pa.array([self._starts[row] + p.chosen for row, p in self._pairs], pa.int64()),
            "rejected": pa.array([self._starts[row] + p.rejected for row, p in self._pairs], pa.int64()),
        }
        columns = {
            name: self.rows.column(name).take(places) for name in ("prompt_id", "prompt", "judge", "source")
        }
        columns["score_chosen"] = pa.array([p.high for _, p in self._pairs], pa.float64())
        columns["score_rejected"] = pa.array([p.low for _, p in self._pairs], pa.float64())
        columns["tie"] = pa.array([p.tie for _, p in self._pairs], pa.bool_())
        for side, taken in sides.items():
            texts = self._completions["text"].take(taken)
            columns[side] = _lists(_messages(["assistant"] * len(texts), texts), range(len(texts) + 1))
            columns[f"{side}_model"] = self._completions["model"].take(taken)
            columns[f"{side}_id"] = self._completions["completion_id"].take(taken)
        return _batch(columns, arrow_schema(PreferenceRow))

    def best(self) -> pa.RecordBatch:
        """The best answers noted so far, as rows of kind sft."""
        import pyarrow as pa

        places = pa.array([row for row, _ in self._best], pa.int64())
        taken = pa.array([self._starts[row] + place for row, place in self._best], pa.int64())
        answers = self._completions["text"].take(taken)
        models = self._completions["model"].take(taken)
        identities = self.rows.column("prompt_id").take(places)
        columns = {
            "row_id": pa.array(self._best_ids(answers.to_pylist()), pa.string()),
            "prompt_id": identities,
            "messages": self._dialogues(answers),
            "parent": pa.nulls(len(places), pa.string()),
            "seed_id": identities,
            "round": pa.array([0] * len(places), pa.int64()),
            "model": models,
            "source": self.rows.column("source").take(places),
        }
        return _batch(columns, arrow_schema(SftRow))

    def _best_ids(self, answers: Sequence[str]) -> list[str]:
        roles, contents = self._said
        ids = []
        for (row, _), answer in zip(self._best, answers, strict=True):
            turns = range(self._turns[row], self._turns[row + 1])
            ids.append(best_id([*((roles[n], contents[n]) for n in turns), ("assistant", answer)]))
        return ids

    def _dialogues(self, answers: pa.Array) -> pa.Array:
        """For each best answer the messages of its prompt, then itself."""
        import pyarrow as pa

        asked = self._prompts
        said = pa.concat_arrays([asked, _messages(["assistant"] * len(answers), answers).cast(asked.type)])
        order: list[int] = []
        ends = [0]
        for number, (row, _) in enumerate(self._best):
            order += [*range(self._turns[row], self._turns[row + 1]), len(asked) + number]
            ends.append(len(order))
        return _lists(said.take(pa.array(order, pa.int64())), ends)

    def _list(self, name: str) -> list[Any]:
        found: list[Any] = self.rows.column(name).to_pylist()
        return found

    @cached_property
    def _completions(self) -> dict[str, pa.Array]:
        """The columns of all completions of all rows, one after the other."""
        found = self.rows.column("completions").flatten()
        names = [child.name for child in found.type]
        return dict(zip(names, found.flatten(), strict=True))

    @cached_property
    def _starts(self) -> list[int]:
        """Where each row's completions begin, and where the last ones end."""
        return _ends(self.rows.column("completions"))

    @cached_property
    def _prompts(self) -> pa.Array:
        """The messages of all prompts, one after the other."""
        return self.rows.column("prompt").flatten()

    @cached_property
    def _turns(self) -> list[int]:
        """Where each row's prompt begins, and where the last one ends."""
        return _ends(self.rows.column("prompt"))

    @cached_property
    def _said(self) -> tuple[list[str], list[str]]:
        """Roles and texts of all messages of all prompts."""
        roles, contents = self._prompts.flatten()
        return roles.to_pylist(), contents.to_pylist()


def batches(artifact: Artifact, *, with_ratings: bool = True) -> Iterator[Batch]:
    """The rows of a feedback artifact in stored order, some at a time.

    All files are checked before this returns. Raises IntegrityError for a file that differs from the manifest, and
    naming the row for one that is no feedback.
    """
    found = artifact.batches(COLUMNS, ROWS_IN_BATCH)

    def read() -> Iterator[Batch]:
        for first, split, rows in found:
            if not _looks_right(rows):
                _validate(artifact, first, rows)
            yield Batch(str(artifact.ref), first, "test" if split == "test" else "train", rows, with_ratings)

    return read()


def _looks_right(rows: pa.RecordBatch) -> bool:
    """Whether the columns are those of feedback and keep its rules, told from whole columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if rows.schema != _expected():
        return False
    prompts, completions = rows.column("prompt").flatten(), rows.column("completions").flatten()
    columns = dict(zip([child.name for child in completions.type], completions.flatten(), strict=True))
    ratings = columns["ratings"].flatten()
    roles, contents = prompts.flatten()
    needed = [rows.column(n) for n in ("prompt_id", "prompt", "completions", "judge", "source")]
    needed += [columns[n] for n in ("completion_id", "model", "text", "ratings")]
    needed += [prompts, completions, ratings, roles, contents, ratings.field("aspect")]
    if any(column.null_count for column in needed):
        return False
    if not pc.all(pc.is_in(roles, pa.array(_ROLES))).as_py():
        return False
    turns, starts = _ends(rows.column("prompt")), _ends(rows.column("completions"))
    spoken, identities = roles.to_pylist(), columns["completion_id"].to_pylist()
    return all(
        turns[n] < turns[n + 1]
        and spoken[turns[n + 1] - 1] == "user"
        and len(set(identities[starts[n] : starts[n + 1]])) == starts[n + 1] - starts[n]
        for n in range(rows.num_rows)
    )


def _validate(artifact: Artifact, first: int, rows: pa.RecordBatch) -> None:
    for number, raw in enumerate(rows.to_pylist(), start=first):
        try:
            FeedbackRow.model_validate(raw)
        except ValidationError as error:
            raise IntegrityError(
                f"{artifact.ref} row {number}: {explain(error)}", hint=artifact.remake()
            ) from None
    raise IntegrityError(f"{artifact.ref}: the columns are not those of feedback", hint=artifact.remake())


@cache
def _expected() -> pa.Schema:
    """The schema of `COLUMNS`, as rows of kind feedback are stored."""
    import pyarrow as pa

    whole = arrow_schema(FeedbackRow)
    completion = whole.field("completions").type.value_type
    rating = completion.field("ratings").type.value_type
    rated = pa.list_(pa.struct([rating.field(n) for n in ("aspect", "value", "reason")]))
    parts = [
        pa.field("ratings", rated) if n == "ratings" else completion.field(n)
        for n in ("completion_id", "model", "text", "ratings", "overall")
    ]
    return pa.schema(
        [
            whole.field("prompt_id"),
            whole.field("prompt"),
            pa.field("completions", pa.list_(pa.struct(parts))),
            whole.field("judge"),
            whole.field("source"),
        ]
    )


def _ends(lists: pa.Array) -> list[int]:
    """Where the lists of a column begin in the values that `flatten()` gives, and where the last one ends."""
    ends = [0]
    for length in lists.value_lengths().to_pylist():
        ends.append(ends[-1] + (length or 0))
    return ends


def _messages(roles: Sequence[str], contents: pa.Array) -> pa.Array:
    """One message for each text."""
    import pyarrow as pa

    return pa.StructArray.from_arrays([pa.array(roles, pa.string()), contents], ["role", "content"])


def _lists(values: pa.Array, ends: Sequence[int]) -> pa.Array:
    """Lists that begin and end in `values` where `ends` says."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def _batch(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
