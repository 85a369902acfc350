"""One rendering for training and generation: which tokens a dialogue becomes, and which of them bear loss.

The loss spans need no marks in the template (see `layout`): loss is borne by an assistant's text and the token that
closes it. Whatever follows that token (a newline in Zephyr's template) is context for the next turn and bears none.

What is trained is what would be generated, token for token: the tokens before an answer are `render_prompt` of the
turns before it. Three exceptions are known:

* A template that rewrites earlier answers (Qwen3 thinking): those bear no loss (`Rendered.rewritten`).
* An answer whose first characters would melt into the prompt's last token (it begins with a newline, and the header
  ends with one) is tokenised on its own, as generation would have written it (`Rendered.resegmented`). The prompts of
  later turns, tokenised as one text, may then split that border otherwise.
* A template may trim an answer (Llama 3, Gemma), or close it with another token where a turn follows (OLMo 3). The
  template's text is then what is trained; both closing tokens end an answer (`stop_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, TypeVar

from zephyrctl.chat.layout import Ends, Layout, find_ends, lay_out, lay_out_answer
from zephyrctl.chat.layout import closing_ids as closing_ids
from zephyrctl.chat.layout import render_text as render_text
from zephyrctl.chat.rules import TokenRules
from zephyrctl.chat.template import template_digest as template_digest
from zephyrctl.chat.template import with_system_default as with_system_default
from zephyrctl.chat.template import zephyr_template as zephyr_template
from zephyrctl.chat.tokenise import Tokenised, tokenise
from zephyrctl.chat.tokenise import encode as encode
from zephyrctl.errors import UsageError
from zephyrctl.records import Message

_PLAIN = TokenRules()
R = TypeVar("R")


@dataclass(frozen=True)
class Rendered:
    """A rendered dialogue. `loss_mask[i]` says whether predicting `input_ids[i]` is trained."""

    text: str
    input_ids: list[int]
    loss_mask: list[bool]
    resegmented: bool = False
    """True where whole-text tokens would have straddled the start of an answer, so the answer was tokenised
    on its own."""
    rewritten: int = 0
    """Answers that bear no loss, as the template renders them otherwise once later turns follow."""

    @cached_property
    def labels(self) -> list[int]:
        """`input_ids` with -100 wherever no loss is borne."""
        pairs = zip(self.input_ids, self.loss_mask, strict=True)
        return [token if bears else -100 for token, bears in pairs]


@dataclass(frozen=True)
class RenderedPair:
    """One preference as token ids: a shared prompt and the two answers, each through its closing token (or as
    `TokenRules.close` says)."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    resegmented: bool = False


@dataclass(frozen=True)
class PairTurns:
    """The turns of one preference: the prompt, and both sides behind it."""

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]


def render_prompt(tokenizer: Any, messages: Sequence[Message], *, rules: TokenRules = _PLAIN) -> list[int]:
    """The token ids a model is given to answer `messages`, the opening of the assistant turn included."""
    return _begin(tokenizer, encode(tokenizer, render_text(tokenizer, messages, generate=True)), rules)[0]


def render_dialogue(tokenizer: Any, messages: Sequence[Message], *, rules: TokenRules = _PLAIN) -> Rendered:
    """The dialogue as token ids, with loss on every assistant text and on the token that closes it (or on every
    token, where `rules.loss_on` says so).

    Raises UsageError where the template refuses the dialogue, does not close an assistant turn with a special token, or
    renders the last answer otherwise than behind the prompt that generation would be given.
    """
    return _or_raise(render_dialogues(tokenizer, [messages], rules=rules)[0])


def render_dialogues(
    tokenizer: Any, dialogues: Sequence[Sequence[Message]], *, rules: TokenRules = _PLAIN
) -> list[Rendered | UsageError]:
    """`render_dialogue` of each, in their order, in one call of the tokenizer; a dialogue that cannot be rendered is
    its error. Raises UsageError only where the template itself is unfit (it never closes an answer)."""
    masked = rules.loss_on == "assistant"
    ends = find_ends(tokenizer) if masked else None
    layouts = [_attempt(partial(_lay_out, tokenizer, turns, ends)) for turns in dialogues]
    tokenised = iter(tokenise(tokenizer, [one for one in layouts if isinstance(one, Layout)]))
    out: list[Rendered | UsageError] = []
    for layout in layouts:
        if isinstance(layout, UsageError):
            out.append(layout)
            continue
        row = next(tokenised)
        ids, shift = _begin(tokenizer, row.ids, rules)
        mask = [not masked] * len(ids)
        for first, stop in row.answers:
            mask[first + shift : stop + shift] = [True] * (stop - first)
        out.append(Rendered(layout.text, ids, mask, row.resegmented, layout.rewritten))
    return out


def render_pair(
    tokenizer: Any,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    rules: TokenRules = _PLAIN,
) -> RenderedPair:
    """The ids of prompt and of both answers; turns that the two sides share before their last answer join
    the prompt. `rules` say how an answer ends and whether the opening of the assistant turn is part of it.

    Raises UsageError where the sides differ in more than their last message or that is no assistant's, and where
    `render_dialogue` would.
    """
    return _or_raise(render_pairs(tokenizer, [PairTurns(prompt, chosen, rejected)], rules=rules)[0])


def render_pairs(
    tokenizer: Any, pairs: Sequence[PairTurns], *, rules: TokenRules = _PLAIN
) -> list[RenderedPair | UsageError]:
    """`render_pair` of each, in their order, in one call of the tokenizer; a pair that cannot be rendered is its
    error. Raises UsageError only where the template itself is unfit (it never closes an answer)."""
    ends = find_ends(tokenizer)
    layouts = [_attempt(partial(_lay_out_pair, tokenizer, turns, ends, rules)) for turns in pairs]
    both = [side for one in layouts if not isinstance(one, UsageError) for side in one]
    tokenised = iter(tokenise(tokenizer, both))
    out: list[RenderedPair | UsageError] = []
    for layout in layouts:
        if isinstance(layout, UsageError):
            out.append(layout)
        else:
            chosen, rejected = next(tokenised), next(tokenised)
            out.append(_attempt(partial(_paired, tokenizer, chosen, rejected, rules)))
    return out


def special_tokens_in(tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    """Special tokens of the tokenizer that the messages spell out in their text (they would be read as the
    real ones)."""
    pattern = _special_pattern(tokenizer)
    return sorted({found for m in messages for found in pattern.findall(m.content)})


@lru_cache(maxsize=4)
def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    longest_first = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _lay_out(tokenizer: Any, messages: Sequence[Message], ends: Ends | None) -> Layout:
    return (
        Layout(render_text(tokenizer, messages), []) if ends is None else lay_out(tokenizer, messages, ends)
    )


def _lay_out_pair(tokenizer: Any, turns: PairTurns, ends: Ends, rules: TokenRules) -> tuple[Layout, Layout]:
    chosen, rejected = turns.chosen, turns.rejected
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise UsageError("the two sides differ in more than their last answer")
    if not all(side and side[-1].role == "assistant" for side in (chosen, rejected)):
        raise UsageError("a side of the pair does not end with an assistant's answer")
    shared = [*turns.prompt, *chosen[:-1]]
    first, second = (
        lay_out_answer(tokenizer, [*shared, side[-1]], ends, with_header=rules.header_in_answer)
        for side in (chosen, rejected)
    )
    return first, second


def _paired(tokenizer: Any, chosen: Tokenised, rejected: Tokenised, rules: TokenRules) -> RenderedPair:
    prompts, answers = [], []
    for side in (chosen, rejected):
        first, stop = side.answers[0]
        answer = side.ids[first : stop if rules.close == "eos" else None]
        answers.append([*answer, int(tokenizer.eos_token_id)] if rules.close == "template+eos" else answer)
        prompts.append(_begin(tokenizer, side.ids[:first], rules)[0])
    if prompts[0] != prompts[1]:
        raise UsageError("the prompt's tokens change with the answer that follows it")
    return RenderedPair(prompts[0], answers[0], answers[1], chosen.resegmented or rejected.resegmented)


def _begin(tokenizer: Any, ids: list[int], rules: TokenRules) -> tuple[list[int], int]:
    """`ids`, behind a beginning-of-sequence token where the rules ask for it and there is none, and how many tokens
    that added."""
    if not rules.bos:
        return ids, 0
    bos = tokenizer.bos_token_id
    if bos is None:
        raise UsageError("`bos` is set, and the tokenizer has no beginning-of-sequence token")
    return (ids, 0) if ids[:1] == [bos] else ([int(bos), *ids], 1)


def _attempt(work: Callable[[], R]) -> R | UsageError:
    try:
        return work()
    except UsageError as error:
        return error


def _or_raise(result: R | UsageError) -> R:
    if isinstance(result, UsageError):
        raise result
    return result
