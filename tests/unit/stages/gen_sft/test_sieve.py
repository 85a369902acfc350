"""The sieve: what is new among machine-made instructions, filters, and counts that add up."""

import itertools
from collections.abc import Sequence

from chain_teacher import Teacher, answer, empty_sieve, made, said, seed, user
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyrctl.curation.base import Dropped
from zephyrctl.curation.novelty import rouge_f, tokens
from zephyrctl.curation.pipeline import Pipeline
from zephyrctl.events import Recorder, Table
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.records import Message, prompt_id
from zephyrctl.stages.gen_sft.chains import grow, refine_request
from zephyrctl.stages.gen_sft.rounds import tell_rounds
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.sieve import Sieve


def chained(*instructions: str) -> Teacher:
    """A teacher that refines each instruction into the next one."""
    table = {f"refine {old}": answer(new) for old, new in itertools.pairwise(instructions)}
    return Teacher({**table})


LONG = "Write a short poem about the sea in winter"


def test_a_refinement_near_to_one_made_in_its_chain_ends_it_before_its_answer_is_bought() -> None:
    teacher = chained("a", LONG, f"{LONG} please", "Name five rivers")
    rows, sieve = made([seed("a")], 3, teacher, novelty=0.7)
    assert [said(r)[0][1] for r in rows] == ["a", LONG]
    assert sieve.dropped() == {"not_novel": 1}
    assert sieve.not_reached() == 1
    assert [d[-1].content for d in teacher.sent] == [
        "a",
        refine_request("a", "re: a"),
        LONG,
        refine_request(LONG, f"re: {LONG}"),
    ]
    assert sieve.rejects[0].said[-1].content == f"{LONG} please"
    assert sieve.rejects[0].detail.startswith("ROUGE-L 0.95 with: ")


def test_a_refinement_near_to_one_of_an_earlier_chain_is_dropped_and_ends_its_chain() -> None:
    teacher = Teacher(
        {"refine a": answer(LONG), "refine b": answer(f"{LONG}, please"), f"refine {LONG}": answer("x y z")}
    )
    rows, sieve = made([seed("a"), seed("b"), seed("c")], 2, teacher, novelty=0.7)
    assert [said(r)[0][1] for r in rows] == ["a", LONG, "x y z", "b", "c", "c+"]
    assert sieve.dropped() == {"not_novel": 2}
    assert [(r.seed.row.prompt[0].content, r.round) for r in sieve.rejects] == [("b", 1), ("c", 2)]


def test_seeds_are_never_compared_with() -> None:
    """A refinement may be as near to a user's seed as it likes, and a seed to a refinement or to another seed."""
    seeds = [seed(LONG), seed(f"{LONG}!"), seed(f"{LONG} now")]
    teacher = Teacher(
        {
            f"refine {LONG}": answer(f"{LONG} please"),
            f"refine {LONG}!": answer("Name five rivers"),
            f"refine {LONG} now": answer("Add three and four"),
        }
    )
    rows, sieve = made(seeds, 1, teacher, novelty=0.7)
    assert len(rows) == 6
    assert not sieve.rejects


TEXTS = st.sampled_from(["a b c d", "a b c e", "a b c d e f", "x y z", "x y w", "same", "bad", "p q r s t"])


@given(
    st.lists(TEXTS, max_size=8),
    st.dictionaries(TEXTS, TEXTS),
    st.integers(0, 3),
    st.integers(0, 8),
    st.sampled_from([0.3, 0.5, 0.7, 1.0]),
)
@settings(max_examples=200)
def test_novelty_holds_over_all_that_is_made_and_depends_on_no_later_seed(
    names: list[str], refined: dict[str, str], rounds: int, cut: int, novelty: float
) -> None:
    table: dict[str, Answer | Failure] = {f"refine {old}": answer(new) for old, new in refined.items()}
    teacher = Teacher({"bad": answer("", "refusal"), **table})
    seeds = [seed(name, where=str(n)) for n, name in enumerate(names)]
    whole, sieve = made(seeds, rounds, teacher, novelty)
    part, _ = made(seeds[:cut], rounds, teacher, novelty)
    assert whole[: len(part)] == part
    machine = [row.messages[0].content for row in whole if row.round]
    for number, text in enumerate(machine):
        for earlier in machine[:number]:
            words, before = tokens(text), tokens(earlier)
            assert rouge_f(lcs(words, before), len(words), len(before)) <= novelty
    tallies = sieve.tallies
    assert sum(t.kept for t in tallies) == sieve.kept
    assert sum(t.tried for t in tallies) + sieve.not_reached() == sieve.possible


def lcs(one: list[str], two: list[str]) -> int:
    """The plain table of dynamic programming."""
    lengths = [0] * (len(two) + 1)
    for word in one:
        row = [0]
        for column, other in enumerate(two):
            row.append(lengths[column] + 1 if word == other else max(row[column], lengths[column + 1]))
        lengths = row
    return lengths[-1]


def test_what_each_round_adds_is_told_and_a_round_that_adds_little_is_warned_of() -> None:
    special: dict[str, Answer | Failure] = {f"refine {n}+": answer(f"{n}+") for n in range(19)}
    special["refine 19"] = answer("", "refusal")
    _, sieve = made([seed(str(n)) for n in range(20)], 2, Teacher(special))
    told = Recorder()
    rounds = tell_rounds(told, sieve.tallies, finished=True)
    assert [(r["tried"], r["kept"], r["unchanged"], r["failed"]) for r in rounds] == [
        (20, 20, 0, 0),
        (20, 19, 0, 1),
        (19, 0, 19, 0),
    ]
    assert (rounds[0]["instruction_words"], rounds[0]["response_words"]) == (1.0, 2.0)
    assert rounds[2]["instruction_words"] is None
    assert told.texts() == [
        "round 2 adds 0 pairs to 20 chains: --rounds 1 makes nearly the same data with fewer calls"
    ]
    assert [e.title for e in told.events if isinstance(e, Table)] == ["what each round adds"]
    quiet = Recorder()
    tell_rounds(quiet, sieve.tallies, finished=False)
    assert not quiet.texts()


class Picky:
    """A filter: drops what says `drop`, cuts what says `cut` into two dialogues, changes what says `mend`."""

    name = "picky"
    learns = False

    def learn(self, dialogue: Sequence[Message]) -> None:
        raise AssertionError("it does not learn")

    def apply(self, dialogue: Sequence[Message]) -> list[list[Message]] | Dropped:
        text = dialogue[0].content
        if "drop" in text:
            return Dropped("picky", "it says drop")
        if "cut" in text:
            return [list(dialogue), [user("second part"), dialogue[-1]]]
        if "mend" in text:
            return [[user("mended"), *dialogue[1:]]]
        return [list(dialogue)]


class PickyPipeline(Pipeline):
    def __init__(self) -> None:
        super().__init__([])

    def apply(self, dialogue: Sequence[Message]) -> list[list[Message]] | Dropped:
        return Picky().apply(dialogue)


def test_filters_drop_cut_and_mend_dialogues_and_counts_add_up() -> None:
    sieve = Sieve(1, "teacher", novelty=1.0, screen=Screen(PickyPipeline()))
    chains = grow([seed("drop"), seed("cut"), seed("mend"), seed("a")], 1, Teacher(), novelty=1.0)
    rows = [row for chain in chains for row in sieve.rows(chain)]
    plain, _ = made([seed("drop"), seed("cut"), seed("mend"), seed("a")], 1, Teacher())
    ids = {row.messages[0].content: row.row_id for row in plain}
    assert [said(r)[0][1] for r in rows] == [
        "cut", "second part", "cut+", "second part", "mended", "mended", "a", "a+"
    ]  # fmt: skip
    assert len({r.row_id for r in rows}) == 8
    assert [r.row_id for r in rows[:1]] == [ids["cut"]]
    assert rows[2].parent == ids["cut"]
    assert rows[1].prompt_id == prompt_id([user("second part")])
    assert rows[4].prompt_id == prompt_id([user("mended")])
    counts = sieve.counts(0)
    assert (counts["kept"], counts["further_parts"], counts["dropped"]) == (6, 2, {"picky": 2})
    assert counts["seeds"] * 2 == counts["kept"] + 2 + counts["not_reached"]
    assert len(rows) == counts["kept"] + counts["further_parts"]


def test_what_is_refined_from_a_dropped_dialogue_names_it_as_its_parent() -> None:
    sieve = Sieve(1, "teacher", novelty=1.0, screen=Screen(PickyPipeline()))
    chains = grow([seed("drop")], 1, Teacher({"refine drop": answer("keep")}), novelty=1.0)
    rows = [row for chain in chains for row in sieve.rows(chain)]
    plain, _ = made([seed("drop")], 1, Teacher({"refine drop": answer("keep")}))
    assert [(r.round, r.parent) for r in rows] == [(1, plain[0].row_id)]


def test_seeds_turned_away_count_as_dropped_pairs_whose_refinements_are_not_reached() -> None:
    sieve = empty_sieve(2)
    sieve.turn_away([{"where": "s:3", "reason": "contaminated", "detail": "x", "row": "{}"}])
    rows = [row for chain in grow([seed("a")], 2, Teacher(), novelty=1.0) for row in sieve.rows(chain)]
    counts = sieve.counts(0)
    assert (len(rows), counts["seeds"], counts["dropped"], counts["not_reached"]) == (
        3, 2, {"contaminated": 1}, 2
    )  # fmt: skip
    assert [row["where"] for row in sieve.reject_rows()] == ["s:3"]
