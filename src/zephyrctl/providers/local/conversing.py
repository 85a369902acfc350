"""Talking with models on this machine: one conversation for each, or many prompts put to several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zephyrctl.events import Emit, Progress, silent
from zephyrctl.providers.base import Ask, BatchProvider, Reading, Sampling
from zephyrctl.records import Message, PromptRow


@dataclass
class Conversation:
    """What a person and one model have said so far."""

    provider: BatchProvider
    sampling: Sampling
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def say(self, text: str) -> Reading:
        """The model's answer to `text` after all that was said; both become part of the conversation."""
        self.turns.append(Message(role="user", content=text))
        reading = _answers(self.provider, [with_system(self.turns, self.system)], self.sampling)[0]
        self.turns.append(Message(role="assistant", content=reading.text))
        return reading

    def forget(self) -> None:
        """Begins anew."""
        self.turns.clear()


def answer_prompts(
    provider: BatchProvider,
    prompts: Sequence[PromptRow],
    sampling: Sampling,
    *,
    system: str | None = None,
    emit: Emit = silent,
) -> list[list[Reading]]:
    """The answers to each prompt: one, and one more for each of its follow-ups, asked after the model's own answers.

    Raises EnvironmentFault where the folder makes no model, UsageError where its template refuses a prompt.
    """
    talks = [list(prompt.prompt) for prompt in prompts]
    found: list[list[Reading]] = [[] for _ in prompts]
    done, total = 0, sum(1 + len(prompt.follow_ups) for prompt in prompts)
    emit(Progress(provider.label, done, total))
    for turn in range(max((1 + len(p.follow_ups) for p in prompts), default=0)):
        asked = [i for i, prompt in enumerate(prompts) if turn <= len(prompt.follow_ups)]
        for start in range(0, len(asked), provider.max_batch):
            batch = asked[start : start + provider.max_batch]
            if turn:
                for i in batch:
                    talks[i].append(Message(role="assistant", content=found[i][-1].text))
                    talks[i].append(Message(role="user", content=prompts[i].follow_ups[turn - 1]))
            for i, reading in zip(
                batch,
                _answers(provider, [with_system(talks[i], system) for i in batch], sampling),
                strict=True,
            ):
                found[i].append(reading)
            done += len(batch)
            emit(Progress(provider.label, done, total))
    return found


def with_system(turns: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The turns, after the system turn `system` where they begin with none of their own."""
    if system is None or (turns and turns[0].role == "system"):
        return tuple(turns)
    return (Message(role="system", content=system), *turns)


def _answers(
    provider: BatchProvider, asked: Sequence[tuple[Message, ...]], sampling: Sampling
) -> list[Reading]:
    bodies = [provider.wire(Ask(messages, sampling)) for messages in asked]
    return [provider.read(raw) for raw in provider.send_batch(bodies)]
