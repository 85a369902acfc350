"""The judge audit: its counts, its independence of the order of rows, and what it says of made-up judges."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.asking.prompts import from_sandbox
from zephyrctl.events import Table
from zephyrctl.judges.agreement import best_of, tau_b
from zephyrctl.judges.audit import Audit
from zephyrctl.judges.audit_report import AuditReport
from zephyrctl.judges.base import NOT_APPLICABLE
from zephyrctl.judges.families import family_of
from zephyrctl.judges.merit import merit_of, sandbox_merit
from zephyrctl.judges.permutation import DRAWS
from zephyrctl.judges.sample import Merit
from zephyrctl.records import Completion, FeedbackRow, Message, Rating, SecondOpinion
from zephyrctl.sandbox import world

ASPECTS = ("a", "b", "c", "d")
Judge = Callable[[random.Random, str, int, int], float]
"""(rng, author, length, place 1-4) in, a rating out."""


def feedback(
    number: int,
    completions: Sequence[Completion],
    judge: str = "openai:gpt-4",
) -> FeedbackRow:
    prompt = [Message(role="user", content=f"question {number}")]
    return FeedbackRow(prompt_id=f"p{number}", prompt=prompt, completions=list(completions), judge=judge)


def judged(
    judge: Judge, rows: int, *, seed: int = 0, authors: Sequence[str] = ("m1", "m2", "m3", "m4")
) -> list[FeedbackRow]:
    """Rows of four texts of random lengths, rated on four aspects in a Latin square by `judge`."""
    rng = random.Random(seed)
    made = []
    for number in range(rows):
        start, order = rng.randrange(4), rng.sample(range(4), 4)
        completions = []
        for text in range(4):
            length = rng.randint(5, 200)
            ratings = []
            for i, aspect in enumerate(ASPECTS):
                place = order[(start + text + i) % 4] + 1
                value = judge(rng, authors[text], length, place)
                ratings.append(
                    Rating(aspect=aspect, value=float(max(1, min(5, round(value)))), position=place)
                )
            completions.append(
                Completion(
                    completion_id=f"{number}-{text}", model=authors[text], text="x" * length, ratings=ratings
                )
            )
        made.append(feedback(number, completions))
    return made


def audited(
    rows: Sequence[FeedbackRow], judge: str = "openai:gpt-4", merit: Merit | None = None
) -> AuditReport:
    audit = Audit(judge, merit=merit)
    for row in rows:
        audit.add(row)
    return audit.report()


def quality(author: str) -> float:
    return {"m1": 4.2, "m2": 3.4, "m3": 2.6, "m4": 1.8}.get(author, 3.0)


def fair(rng: random.Random, author: str, length: int, place: int) -> float:
    return quality(author) + rng.gauss(0, 0.7)


def early(rng: random.Random, author: str, length: int, place: int) -> float:
    return fair(rng, author, length, place) + 0.3 * (4 - place) / 3


def wordy(rng: random.Random, author: str, length: int, place: int) -> float:
    return fair(rng, author, length, place) + 0.004 * length


# --- what the tests find


def test_a_judge_that_favours_what_stands_first_is_found_and_measured() -> None:
    report = audited(judged(early, 300))
    position = report.as_dict()["position"]
    assert report.found() == {"position": True, "length": False}
    assert position["first_less_last"] == pytest.approx(0.3, abs=0.1)
    assert all(one["first_less_last"] > 0 for one in position["aspects"].values())
    means = [position["places"][str(place)]["mean"] for place in (1, 2, 3, 4)]
    assert means == sorted(means, reverse=True)
    assert report.sentences()[0].startswith("texts shown first are rated 0.")


def test_a_judge_that_favours_what_is_long_is_found() -> None:
    report = audited(judged(wordy, 300))
    assert report.found() == {"position": False, "length": True}
    found = report.as_dict()["length"]["mean"]
    assert found["by_author"]["slope"] > 0.05
    deciles = found["deciles"]
    assert [d["decile"] for d in deciles] == list(range(1, 11))
    assert sum(d["texts"] for d in deciles) == 1200
    assert deciles[-1]["mean"] > deciles[0]["mean"]
    assert any("longer texts get a higher mean of the aspects" in s for s in report.sentences())


def test_a_fair_judge_is_left_in_peace_however_the_texts_differ() -> None:
    alarms = 0
    for seed in range(20):
        found = audited(judged(fair, 120, seed=seed)).found()
        alarms += found["position"] + found["length"]
    assert alarms <= 2


def test_a_wordy_model_that_is_good_is_no_effect_of_length() -> None:
    def rows(seed: int) -> list[FeedbackRow]:
        rng = random.Random(seed)
        made = []
        for number in range(200):
            completions = []
            for text, author in enumerate(("m1", "m2", "m3", "m4")):
                length = round(40 * quality(author)) + rng.randint(0, 20)
                ratings = [
                    Rating(aspect=a, value=float(round(quality(author) + rng.gauss(0, 0.5)))) for a in ASPECTS
                ]
                completions.append(
                    Completion(
                        completion_id=f"{number}-{text}", model=author, text="x" * length, ratings=ratings
                    )
                )
            made.append(feedback(number, completions))
        return made

    length = audited(rows(1)).as_dict()["length"]["mean"]
    assert length["raw"]["p"] < 1e-6
    assert length["by_author"]["p"] > 0.01
    assert length["test"] == "by_author"


def test_where_merit_is_known_only_equally_good_texts_are_compared() -> None:
    def merit(prompt: Sequence[Message], text: str) -> float:
        return float(len(text) > 100)

    def step(rng: random.Random, author: str, length: int, place: int) -> float:
        return 2.0 + 2 * (length > 100) + rng.gauss(0, 0.5)

    rows = judged(step, 200)
    assert audited(rows).found()["length"]
    report = audited(rows, merit=merit)
    assert report.as_dict()["length"]["mean"]["test"] == "equal_merit"
    assert not report.found()["length"]
    assert any("among equally good texts" in s for s in report.sentences())


def test_few_rows_are_tested_by_drawing_and_none_at_all_by_nothing() -> None:
    report = audited(judged(early, 20))
    p = report.as_dict()["position"]["p_trend"]
    draws = 1 + DRAWS
    assert p * draws == pytest.approx(round(p * draws))
    empty = audited([])
    assert empty.as_dict()["position"] is None
    assert empty.found() == {"position": False, "length": False}
    assert empty.sentences() == []
    assert empty.tables() == []


def by(model: str, length: int, value: float) -> Completion:
    return Completion(
        completion_id=model, model=model, text="x" * length, ratings=[Rating(aspect="a", value=value)]
    )


def test_of_a_few_prompts_nothing_is_said_to_be_absent() -> None:
    few = audited(judged(fair, 8)).sentences()
    assert few[0].startswith("too few prompts (8) to say that the place shown has no effect")
    assert few[1].startswith("too few prompts (8) to say that the length has no effect")
    strangers = [feedback(0, [by(f"m{i}", 10 + i, 1.0 + i) for i in range(3)])]
    strangers += [feedback(1, [by(f"n{i}", 10 + i * i, 5.0 - i) for i in range(3)])]
    assert audited(strangers).as_dict()["length"]["p"] is None
    many = audited(judged(fair, 40)).sentences()
    assert not any("too few" in s for s in many)


def test_a_note_on_the_overall_score_is_no_rating() -> None:
    def row(number: int, *notes: Rating) -> FeedbackRow:
        plain = [rated("x", 4.0, overall=None), rated("yy", 2.0, overall=7)]
        return feedback(number, [c.model_copy(update={"ratings": [*c.ratings, *notes]}) for c in plain])

    note = Rating(aspect="overall", value=None, reason="10 or 1")
    plain, noted = audited([row(1), row(2)]), audited([row(1, note), row(2, note)])
    assert noted.as_dict() == plain.as_dict()


def test_own_family_and_others_are_compared_within_prompts() -> None:
    def loyal(rng: random.Random, author: str, length: int, place: int) -> float:
        return 3.0 + 0.6 * author.startswith("openai") + rng.gauss(0, 0.7)

    rows = judged(loyal, 200, authors=("openai:gpt-4o", "anthropic:claude-x", "org/Llama-3-8B", "openai:o3"))
    found = audited(rows).as_dict()["family"]
    assert found["judge"] == "openai"
    assert found["mean"]["difference"] == pytest.approx(0.6, abs=0.15)
    assert found["mean"]["p"] < 0.001
    assert (found["mean"]["own"]["texts"], found["mean"]["other"]["texts"]) == (400, 400)
    assert audited(rows, "my-endpoint:secret-model").as_dict()["family"] is None
    alone = audited(rows, "qwen/Qwen3-32B").as_dict()["family"]["mean"]
    assert (alone["difference"], alone["p"], alone["own"]["texts"]) == (None, None, 0)


# --- what is counted


def rated(
    text: str, *values: float | str | None, overall: float | None = None, number: int = 0
) -> Completion:
    """A completion; a text among the values is the reason why there is none."""
    ratings = [
        Rating(aspect=aspect, value=None, reason=value)
        if isinstance(value, str)
        else Rating(aspect=aspect, value=value)
        for aspect, value in zip(ASPECTS, values, strict=False)
    ]
    return Completion(completion_id=f"{text}{number}", model="m", text=text, ratings=ratings, overall=overall)


def test_rates_add_up_and_unread_is_told_from_not_applicable() -> None:
    rows = [
        feedback(1, [rated("x", 4.0, NOT_APPLICABLE), rated("yy", "no section: Text 2", 2.0)]),
        feedback(2, [rated("x", 5.0, NOT_APPLICABLE), rated("yy", "no section after repair: Text 2", 3.0)]),
    ]
    found = audited(rows).as_dict()["ratings"]
    assert found["a"] == {
        "asked": 4, "rated": 2, "not_applicable": 0, "unread": {"no section": 1, "no section after repair": 1},
        "parse_rate": 0.5, "mean": 4.5,
    }  # fmt: skip
    assert (found["b"]["not_applicable"], found["b"]["parse_rate"], found["b"]["mean"]) == (2, 1.0, 2.5)
    assert "overall" not in found


def test_ties_disagreement_and_longer_answers_are_counted_by_hand() -> None:
    rows = [
        feedback(
            1,
            [
                rated("long answer", 5, overall=9),
                rated("short", 3, overall=4),
                rated("mid one", 3, overall=7),
            ],
        ),
        feedback(2, [rated("long answer", 4, overall=5), rated("short", 4, overall=8)]),
        feedback(3, [rated("same", 2, overall=5), rated("size", 4, overall=3)]),
        feedback(4, [rated("alone", 2, overall=5), rated("unrated", None)]),
    ]
    body = audited(rows).as_dict()
    assert body["ties"]["mean"] == {"rows": 3, "tied": 1, "rate": 0.333333}
    assert body["ties"]["overall"] == {"rows": 3, "tied": 0, "rate": 0.0}
    assert body["ties"]["a"]["tied"] == 1
    # row 4 has one scored text, best by both
    assert body["disagreement"] == {"rows": 4, "best_differs": 0.25, "pairs": 3, "opposite": 0.333333}
    assert body["longer"]["overall"] == {"pairs": 3, "agrees": 0.666667, "equal_length": 1}
    assert body["longer"]["mean"] == {"pairs": 2, "agrees": 1.0, "equal_length": 1}
    [told] = [s for s in audited(rows).sentences() if s.startswith("a judge that picks the longer answer")]
    assert "agrees with 100% of these pairs (2, by mean of the aspects)" in told
    assert "67% of these pairs (3, by overall score)" in told


def test_a_scorers_raw_numbers_are_audited_too() -> None:
    rows = [feedback(i, [rated("x" * (i + 1), overall=-3.5 + i), rated("y", overall=0.25)]) for i in range(5)]
    report = audited(rows, "rm:./reward")
    body = report.as_dict()
    assert body["position"] is None
    assert list(body["ratings"]) == ["overall"]
    assert body["family"] is None
    ratings, lengths = report.tables()
    assert ratings.columns == ("aspect", "asked", "n/a", "unread", "mean")
    assert lengths.title.startswith("mean score by length")


def test_agreement_of_a_second_judge_and_a_retest_by_hand() -> None:
    def opinion(judge: str, why: str, value: float | None, overall: float | None) -> SecondOpinion:
        return SecondOpinion(judge=judge, why=why, ratings=[Rating(aspect="a", value=value)], overall=overall)

    one = rated("x", 4.0, overall=8.0).model_copy(
        update={
            "opinions": [opinion("other", "margin", 4.0, 5.0), opinion("openai:gpt-4", "retest", 3.0, 8.0)]
        }
    )
    two = rated("yy", 2.0, overall=7.0).model_copy(
        update={
            "opinions": [opinion("other", "margin", None, 9.0), opinion("openai:gpt-4", "retest", 2.0, 6.0)]
        }
    )
    found = audited([feedback(1, [one, two]), feedback(2, [rated("x", 1.0), rated("y", 2.0)])]).as_dict()[
        "agreement"
    ]
    assert found["other"]["same_best"] == 0.0
    assert found["other"]["kendall_tau_b"] == -1.0
    assert found["other"]["aspects"] == {
        "ratings": 1, "missing": 1, "exact": 1.0, "within_one": 1.0, "mean_distance": 0.0,
    }  # fmt: skip
    assert found["other"]["overall"]["mean_distance"] == 2.5
    assert found["retest"]["same_best"] == 1.0
    assert found["retest"]["aspects"]["exact"] == 0.5
    assert found["retest"]["overall"] == {
        "ratings": 2, "missing": 0, "exact": 0.5, "within_one": 1.0, "mean_distance": 0.5,
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=6))
def test_tau_b_is_symmetric_bounded_and_one_of_itself(pairs: list[tuple[int, int]]) -> None:
    one, other = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = tau_b(one, other)
    assert found == tau_b(other, one)
    if found is not None:
        assert -1.0000001 <= found <= 1.0000001
    itself = tau_b(one, one)
    assert itself is None if len(set(one)) == 1 else itself == pytest.approx(1.0)


def test_the_best_are_all_that_share_the_highest_score() -> None:
    assert best_of([1.0, None, 4.0, 4.0]) == {2, 3}
    assert best_of([None, None]) == set()
    assert best_of([0.1 + 0.2, 0.3]) == {0, 1}


# --- in any order, on any number of rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_report_does_not_depend_on_the_order_of_the_rows(seed: int, rng: random.Random) -> None:
    rows = judged(early, 70, seed=seed)
    rows.append(rows[0].model_copy(update={"completions": rows[0].completions[::-1]}))  # one prompt, twice
    mixed = list(rows)
    rng.shuffle(mixed)
    assert json.dumps(audited(rows).as_dict()) == json.dumps(audited(mixed).as_dict())


def test_tests_look_at_a_bounded_sample_and_means_at_everything() -> None:
    rows = judged(early, 300)
    small = Audit("openai:gpt-4", most=25)
    for row in rows:
        small.add(row)
    backwards = Audit("openai:gpt-4", most=25)
    for row in reversed(rows):
        backwards.add(row)
    body, whole = small.report().as_dict(), audited(rows).as_dict()
    assert body == backwards.report().as_dict()
    assert (body["tested_prompts"], whole["tested_prompts"]) == (25, 300)
    assert body["position"]["places"] == whole["position"]["places"]
    assert body["ratings"] == whole["ratings"]
    assert body["longer"] == whole["longer"]


def test_tables_are_text_and_as_wide_as_their_heads() -> None:
    report = audited(judged(early, 60))
    tables = report.tables()
    assert [t.title.split(" (")[0] for t in tables] == [
        "ratings",
        "mean score by length, in tenths of the texts",
    ]
    assert [row[0] for row in tables[0].rows][-1] == "all aspects"
    for table in tables:
        assert isinstance(table, Table)
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("openai:gpt-4", "openai"), ("openai:o3-mini", "openai"), ("anthropic:claude-opus-5", "anthropic"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta"), ("lab:qwen3-32b", "qwen"), ("Qwen/Qwen2.5-7B", "qwen"),
        ("mistralai/Mixtral-8x7B", "mistral"), ("EleutherAI/gpt-neox-20b", "eleutherai"),
        ("google/gemma-3-4b", "google"), ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek"),
        ("ckpt/sft-e1", None), ("rm:./reward", None), ("file.py:right", None), ("sandbox:pool-a", "sandbox"),
        ("openai-gpt?temperature=1", "openai"), ("octopus", None),
    ],
)  # fmt: skip
def test_families_are_read_off_names(model: str, family: str | None) -> None:
    assert family_of(model) == family


def test_merit_is_known_in_the_sandbox_alone() -> None:
    assert merit_of("openai:gpt-4") is None
    assert merit_of("sandbox:judge") is sandbox_merit
    assert sandbox_merit([Message(role="user", content="Who wrote Emma?")], "Jane Austen") is None
    seed = next(s for s in from_sandbox(20, 1).load(seed=1, test_fraction=0.1) if len(s.row.prompt) == 1)
    right = world.solve([seed.row.prompt[0].content])
    assert right is not None
    texts = (right, f"The answer is {right}.", "I cannot say, not for all the words in the world")
    assert [sandbox_merit(seed.row.prompt, t) for t in texts] == [1.0, 1.0, 0.0]
