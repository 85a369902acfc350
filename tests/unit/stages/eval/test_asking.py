import pytest

from zephyrctl.asking.seats import Seat
from zephyrctl.benchmarks.base import Decoding, Item
from zephyrctl.benchmarks.sandbox import sandbox_suites
from zephyrctl.modelspec import parse_model
from zephyrctl.providers.base import Answer, Failure
from zephyrctl.providers.sandbox import SandboxProvider
from zephyrctl.stages.eval.asking import transcripts, verdicts
from zephyrctl.stages.eval.config import EvalConfig

CONFIG = EvalConfig(model="x", rows=3)
GREEDY = Decoding("greedy", 0.0)
ITEMS = [
    Item("sort", ("Sort these words: pear fig", "Now in reverse order.")),
    Item("sort", ("Sort these words: oak elm",)),
]


class FakeCaller:
    """Answers by a function of the ask and keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def ask(self, provider, asks, *, task):
        self.asked.append(list(asks))
        return [self.answer(ask) for ask in asks]


def said(text, outcome="text"):
    return Answer(text, outcome, "stop", "m", None, "key", False)


def test_later_turns_follow_the_models_own_answers():
    caller = FakeCaller(lambda ask: said(f"  answer to {ask.messages[-1].content} "))
    found, cut = transcripts(caller, None, ITEMS, GREEDY, CONFIG, "m")
    first, second = caller.asked
    assert [len(first), len(second), cut] == [2, 1, 0]
    assert [m.content for m in second[0].messages] == [
        ITEMS[0].turns[0],
        f"answer to {ITEMS[0].turns[0]}",
        ITEMS[0].turns[1],
    ]
    assert [r.text for r in found[ITEMS[0].prompt_id].replies] == [f"answer to {t}" for t in ITEMS[0].turns]


def test_sampled_answers_are_seeded_by_prompt_and_turn_greedy_ones_not_at_all():
    caller = FakeCaller(lambda ask: said("x"))
    transcripts(caller, None, ITEMS, Decoding("sampled", 0.7), CONFIG, "m")
    seeds = [ask.sampling.seed for wave in caller.asked for ask in wave]
    assert len(set(seeds)) == 3
    alone = FakeCaller(lambda ask: said("x"))
    transcripts(alone, None, ITEMS[1:], Decoding("sampled", 0.7), CONFIG, "m")
    assert alone.asked[0][0].sampling.seed == seeds[1]
    greedy = FakeCaller(lambda ask: said("x"))
    transcripts(greedy, None, ITEMS, GREEDY, CONFIG, "m")
    assert all(ask.sampling.seed is None for wave in greedy.asked for ask in wave)


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (Failure("timeout", "120 s", "key"), None, "timeout: 120 s"),
        (said("I will not", "refusal"), None, "refusal"),
        (said("half an ans", "length"), "half an ans", None),
        (said("", "empty"), "", None),
    ],
)
def test_what_counts_as_an_answer(answer, text, reason):
    found, cut = transcripts(FakeCaller(lambda ask: answer), None, ITEMS, GREEDY, CONFIG, "m")
    reply = found[ITEMS[1].prompt_id].replies[0]
    assert (reply.text, reply.reason) == (text, reason)
    assert cut == (3 if getattr(answer, "outcome", "") == "length" else 0)
    later = found[ITEMS[0].prompt_id].replies[1]
    assert (later.text is None) == (text is None)


def judged(answer, theirs="elm fig"):
    ours, _ = transcripts(FakeCaller(lambda ask: said("fig pear")), None, ITEMS, GREEDY, CONFIG, "m")
    base, _ = transcripts(FakeCaller(lambda ask: said(theirs)), None, ITEMS, GREEDY, CONFIG, "b")
    seat = Seat(parse_model("sandbox:judge"), SandboxProvider("judge"))
    caller = FakeCaller(answer)
    return verdicts(caller, seat, sandbox_suites(), {"greedy": ours}, {"greedy": base}, CONFIG, "m"), caller


def test_verdicts_keep_their_order_and_their_own_reply():
    def reply(ask):
        pair = "ANSWER B" in ask.messages[0].content
        return said("Verdict: [[A]]" if pair else "Rating: [[7]]")

    rows, caller = judged(reply)
    assert [(r.suite, r.turn, r.order, r.score) for r in rows] == [
        ("judged", 1, "", 7.0),
        ("judged", 2, "", 7.0),
        ("judged", 1, "", 7.0),
        ("win_rate", 1, "AB", 1.0),
        ("win_rate", 1, "BA", 0.0),
        ("win_rate", 1, "AB", 1.0),
        ("win_rate", 1, "BA", 0.0),
        ("exact", 1, "", 1.0),
        ("exact", 2, "", 0.0),
        ("exact", 1, "", 0.0),
    ]
    assert len(caller.asked) == 1
    assert all(ask.sampling.temperature == 0 for ask in caller.asked[0])


def test_a_judge_that_does_not_answer_leaves_a_hole_with_a_reason():
    rows, _ = judged(lambda ask: Failure("server_error", "503", "key"))
    holes = [r for r in rows if r.suite != "exact"]
    assert all(r.score is None and "503" in r.reason for r in holes)
    rows, _ = judged(lambda ask: said("cut off he", "length"))
    assert all(r.score is None and "cut_off" in r.reason for r in rows if r.suite != "exact")


def test_nothing_is_compared_without_a_baseline():
    ours, _ = transcripts(FakeCaller(lambda ask: said("fig pear")), None, ITEMS, GREEDY, CONFIG, "m")
    seat = Seat(parse_model("sandbox:judge"), SandboxProvider("judge"))
    caller = FakeCaller(lambda ask: said("Rating: [[7]]"))
    rows = verdicts(caller, seat, sandbox_suites(), {"greedy": ours}, {}, CONFIG, "m")
    assert {r.suite for r in rows} == {"judged", "exact"}


def test_reasoning_without_an_answer_is_no_answer():
    caller = FakeCaller(lambda ask: said("", "reasoning_cut"))
    found, cut = transcripts(caller, None, ITEMS, GREEDY, CONFIG, "m")
    assert cut == 0
    assert [r.reason for r in found[ITEMS[1].prompt_id].replies] == ["reasoning_cut"]
