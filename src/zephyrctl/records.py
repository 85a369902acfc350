"""The shape of a row, for every kind of artifact. A changed shape is a new number in `SCHEMAS`.

Columns follow the habits of the Hugging Face Hub: `messages`; `prompt`, `chosen`, `rejected` as message lists.
Rows hold no time, latency or request id, so equal work gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "test"]
Kind = Literal["prompts", "sft", "feedback", "prefs", "model", "logprobs", "eval", "report"]

SCHEMAS: dict[str, int] = {
    "prompts": 1, "sft": 1, "feedback": 2, "prefs": 2, "model": 1, "logprobs": 1, "eval": 1, "report": 1,
}  # fmt: skip


def _storable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"text holds a lone surrogate at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]


class Record(BaseModel):
    """Base of all rows: frozen, unknown columns refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: Text


def prompt_id(messages: Sequence[Message]) -> str:
    """sha256 of the prompt: of the text of a single user message (as on the Hub), else of the canonical JSON."""
    if len(messages) == 1 and messages[0].role == "user":
        return hashlib.sha256(messages[0].content.encode()).hexdigest()
    body = [[m.role, m.content] for m in messages]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def split_of(identity: str, test_fraction: float) -> Split:
    """The split a prompt belongs to, decided by its hash alone: every stage that starts from equal prompts agrees."""
    draw = int.from_bytes(hashlib.sha256(f"split\x1f{identity}".encode()).digest()[:8], "big") / 2**64
    return "test" if draw < test_fraction else "train"


def row_seed(seed: int, *identity: object) -> int:
    """A 63-bit seed for one row's random choices, from the run's seed and the row's content alone."""
    text = "\x1f".join([str(seed), *map(str, identity)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def completion_id(model: str, draw: int, text: str) -> str:
    """What a rating is bound to: sha256 of model, draw and text, so equal texts of two models are two completions."""
    body = json.dumps([model, draw, text], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def _ends_with_user(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "user":
        raise ValueError("a prompt must end with a user message")


class PromptRow(Record):
    """Kind `prompts`: what is asked. `follow_ups` are further user turns, asked after the model's own answers."""

    prompt_id: str
    prompt: list[Message]
    follow_ups: list[Text] = Field(default_factory=list)
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> PromptRow:
        _ends_with_user(self.prompt)
        return self


class SftRow(Record):
    """Kind `sft`: one dialogue to imitate.

    `parent` is the row_id it was refined from, `seed_id` the prompt at the root.
    """

    row_id: str
    prompt_id: str
    messages: list[Message]
    parent: str | None = None
    seed_id: str | None = None
    round: int = 0
    model: str | None = None
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> SftRow:
        roles = [m.role for m in self.messages]
        if "assistant" not in roles:
            raise ValueError("a dialogue needs at least one assistant message to learn from")
        if roles[0] == "assistant":
            raise ValueError("a dialogue cannot begin with the assistant")
        return self


class Rating(Record):
    """One judge's rating of one completion on one aspect.

    `value` None = not rated: N/A or unparsable, `reason` says which.
    """

    aspect: str
    value: float | None
    rationale: Text | None = None
    reason: str | None = None
    position: int | None = None
    """1-based place in which the judge saw this completion; None where it saw it alone."""
    types: list[int] = Field(default_factory=list)
    """Which of the aspect's numbered kinds (of errors, of merits) the judge named; empty = none, or not asked."""


class SecondOpinion(Record):
    """What another judge, or the same one asked once more, said of one completion."""

    judge: str
    why: str
    """Why it was asked: `margin`, `conflict`, `always` or `retest`."""
    ratings: list[Rating] = Field(default_factory=list)
    overall: float | None = None
    critique: Text | None = None


class Completion(Record):
    """One model's answer to a prompt, with what the judge said about it."""

    completion_id: str
    """sha256 of model, draw and text: what a rating is bound to."""
    model: str
    text: Text
    finish_reason: str = "stop"
    ratings: list[Rating] = Field(default_factory=list)
    overall: float | None = None
    """Overall score 1-10 of the critique, or the score of a reward model or function as it is; None = unscored."""
    critique: Text | None = None
    draw: int = 0
    """Which of the model's answers to this prompt it is, from 0 on."""
    principle: str | None = None
    """The principle that the model was given as a system message; None = it was given none."""
    opinions: list[SecondOpinion] = Field(default_factory=list)
    """Further judgements; they never change `ratings` and `overall`."""


class FeedbackRow(Record):
    """Kind `feedback`: a prompt, its completions and their ratings.

    `judge` is who rated: a model's label, `rm:MODEL` or `file.py:fn`.
    """

    prompt_id: str
    prompt: list[Message]
    completions: list[Completion]
    judge: str
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> FeedbackRow:
        _ends_with_user(self.prompt)
        ids = [c.completion_id for c in self.completions]
        if len(set(ids)) != len(ids):
            raise ValueError("two completions share one completion_id")
        return self


class PreferenceRow(Record):
    """Kind `prefs`: `chosen` is preferred to `rejected` after `prompt` (message lists, as TRL wants them)."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    score_chosen: float | None = None
    score_rejected: float | None = None
    chosen_model: str | None = None
    rejected_model: str | None = None
    judge: str | None = None
    tie: bool = False
    source: str = ""
    chosen_id: str | None = None
    """completion_id of the chosen completion in the feedback; None for pairs from elsewhere."""
    rejected_id: str | None = None
    """completion_id of the rejected completion in the feedback."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceRow:
        _ends_with_user(self.prompt)
        for side in ("chosen", "rejected"):
            messages: list[Message] = getattr(self, side)
            if not messages or messages[-1].role != "assistant":
                raise ValueError(f"`{side}` must end with an assistant message")
        if self.chosen == self.rejected:
            raise ValueError("`chosen` and `rejected` are the same text")
        return self


class Verdict(Record):
    """Kind `eval`: one graded answer. `score` None = failed (see `reason`); `unit` says on which scale."""

    suite: str
    """judged (1-10), win_rate (0, 0.5, 1 against the baseline) or exact (0 or 1)."""
    decoding: str
    """greedy or sampled."""
    prompt_id: str
    turn: int
    family: str
    question: Text
    answer: Text
    reference: Text | None = None
    """The exact answer, or the baseline's answer where two are compared."""
    score: float | None
    judge: str
    order: str = ""
    """AB = the model's answer was shown first, BA = second; empty where it was judged alone."""
    critique: Text | None = None
    reason: str | None = None


class PairLogprobsRow(Record):
    """What a model says of one preference pair: log-probabilities of both answers given the prompt, in nats, summed."""

    pair: str
    """sha256 of the token ids of prompt, chosen and rejected answer: 64 hex digits."""
    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


ROW_TYPES: dict[str, type[Record]] = {
    "prompts": PromptRow, "sft": SftRow, "feedback": FeedbackRow, "prefs": PreferenceRow, "eval": Verdict,
    "logprobs": PairLogprobsRow,
}  # fmt: skip


def explain(error: ValidationError) -> str:
    """A pydantic error as one clause: `messages.0.role: input should be 'user' or 'assistant' (got 'bot')`."""
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(x) for x in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        got = item.get("input")
        shown = f" (got {got!r:.60})" if isinstance(got, str | int | float | bool) or got is None else ""
        if item["type"] == "extra_forbidden":  # whatever was put there by mistake may be a secret
            what, shown = "there is no such key", ""
        parts.append(f"{where}: {what}{shown}" if where else what)
    more = len(error.errors()) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
