"""From a pair back to its completions, ratings, prompt and seed, with the calls that made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.artifacts.tags import remove
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.records import FeedbackRow, PreferenceRow, SftRow
from zephyrctl.report.why import lines, why
from zephyrctl.stages.binarize.config import BinarizeConfig
from zephyrctl.stages.binarize.run import run as binarize
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.run import run as gen_prefs
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.run import run as gen_sft


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    work = Work(Store.open(tmp_path_factory.mktemp("why") / "artifacts"))
    gen_sft(GenSftConfig(teacher="sandbox", rows=8), work)
    gen_prefs(GenPrefsConfig(teacher="sandbox"), work)
    binarize(BinarizeConfig(), work)
    return work.store


def pair_of(store: Store) -> PreferenceRow:
    """A pair whose prompt was refined from a seed."""
    refined = {
        r.prompt_id for _, _, r in store.resolve("sft-data").rows() if isinstance(r, SftRow) and r.parent
    }
    rows = [r for _, _, r in store.resolve("prefs").rows() if isinstance(r, PreferenceRow)]
    return next(r for r in rows if r.prompt_id in refined)


def test_a_pair_goes_back_to_its_seed(store: Store) -> None:
    pair = pair_of(store)
    with Ledger.open(store.ledger_path) as ledger:
        found = why(store, ledger, "prefs", pair.prompt_id[:10])
    kinds = [cause.kind for cause in found.causes]
    assert kinds == ["prefs", "feedback", "sft", "sft"]
    assert found.lost == []
    feedback, child, seed = found.causes[1], found.causes[2].row, found.causes[3].row
    assert isinstance(feedback.row, FeedbackRow)
    assert feedback.row.prompt_id == pair.prompt_id
    assert isinstance(child, SftRow)
    assert isinstance(seed, SftRow)
    assert (child.parent, seed.parent) == (seed.row_id, None)
    answered = [one for one in feedback.calls if one["what"] == "answered it"]
    judged = [one for one in feedback.calls if one["what"].startswith("read")]
    assert len(answered) >= len(feedback.row.completions)
    assert len(judged) >= 8  # four aspects, and the overall score of four completions
    assert all(one["usd"] == 0.0 for one in feedback.calls)
    text = "\n".join(lines(found))
    assert str(pair.chosen_model) in text
    assert text.endswith(f"{found.document()['calls']} calls, $0.000000 in all")


def test_a_completion_leads_to_its_row(store: Store) -> None:
    pair = pair_of(store)
    with Ledger.open(store.ledger_path) as ledger:
        by_completion = why(store, ledger, "feedback", str(pair.chosen_id))
        by_pair = why(store, ledger, "prefs", str(pair.chosen_id))
    assert by_completion.causes[0].row == by_pair.causes[1].row


def test_what_cannot_be_found_is_said(store: Store, tmp_path: Path) -> None:
    with Ledger.open(store.ledger_path) as ledger:
        with pytest.raises(UsageError, match="too short"):
            why(store, ledger, "prefs", "abc")
        with pytest.raises(RefNotFound, match="no row of prefs@v1"):
            why(store, ledger, "prefs", "0" * 20)


def test_an_ancestor_that_is_gone_is_named(tmp_path: Path) -> None:
    work = Work(Store.open(tmp_path / "artifacts"))
    gen_prefs(GenPrefsConfig(teacher="sandbox", rows=4), work)
    binarize(BinarizeConfig(ties="keep"), work)
    _, _, row = next(work.store.resolve("prefs").rows())
    assert isinstance(row, PreferenceRow)
    remove(work.store, "feedback@v1", yes=True)
    with Ledger.open(work.store.ledger_path) as ledger:
        found = why(work.store, ledger, "prefs", row.prompt_id)
    assert found.lost == ["feedback@v1 (feedback) is no longer in the store"]


def test_a_pair_of_many_is_named_by_both_completions(store: Store) -> None:
    work = Work(store)
    binarize(BinarizeConfig(rejected="all-pairs", out="every"), work)
    rows = [r for _, _, r in store.resolve("every").rows() if isinstance(r, PreferenceRow)]
    first = next(r for r in rows if sum(r.prompt_id == other.prompt_id for other in rows) > 1)
    with Ledger.open(store.ledger_path) as ledger:
        with pytest.raises(UsageError, match="rows of every@v1 have an id"):
            why(store, ledger, "every", first.prompt_id)
        named = f"{str(first.chosen_id)[:12]}/{str(first.rejected_id)[:12]}"
        assert why(store, ledger, "every", named).causes[0].row == first


@pytest.mark.parametrize(
    ("method", "whats"),
    [
        ("self-instruct", ["made it up", "read it", "read it"]),
        ("ultrachat", ["made it up", "answered it", "read 1 of its texts"]),
    ],
)
def test_made_up_rows_lead_to_the_calls_behind_them(tmp_path: Path, method: str, whats: list[str]) -> None:
    work = Work(Store.open(tmp_path / "artifacts"))
    gen_sft(GenSftConfig.model_validate({"teacher": "sandbox", "method": method, "rows": 12}), work)
    rows = [r for _, _, r in work.store.resolve("sft-data").rows() if isinstance(r, SftRow)]
    with Ledger.open(work.store.ledger_path) as ledger:
        for row in rows:
            found = [one["what"] for one in why(work.store, ledger, "sft-data", row.row_id).causes[0].calls]
            # several requests may have made up the same text
            assert [what for n, what in enumerate(found) if n == 0 or what != whats[0]][: len(whats)] == whats


def test_calls_in_another_ledger_are_no_calls_that_cost_nothing(store: Store, tmp_path: Path) -> None:
    pair = pair_of(store)
    with Ledger.open(tmp_path / "other.sqlite") as ledger:
        found = why(store, ledger, "prefs", pair.prompt_id)
    assert [text.partition(" are not in ")[0] for text in found.lost] == [
        "the calls of feedback@v1",
        "the calls of sft-data@v1",
    ]
