"""Conversations with models on this machine: what each turn is asked, and who gets which answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.artifacts.models import ModelSource
from zephyrctl.errors import UsageError
from zephyrctl.events import Progress, Recorder
from zephyrctl.providers.base import Sampling
from zephyrctl.providers.local.conversing import Conversation, answer_prompts, with_system
from zephyrctl.providers.local.provider import LocalProvider
from zephyrctl.records import Message, PromptRow, prompt_id


class Echo(LocalProvider):
    """Answers with the number of turns and the last of them; notes every request."""

    def __init__(self, max_batch: int = 2) -> None:
        super().__init__(
            ModelSource(Path("none"), "sha256:abc", "echo@v1", "real", None), max_batch=max_batch
        )
        self.asked: list[dict[str, Any]] = []

    def send_batch(self, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        assert len(bodies) <= self.max_batch
        self.asked += bodies
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        return [
            json.dumps(
                {
                    "text": f"{len(b['messages'])}:{b['messages'][-1]['content']}",
                    "finish_reason": "stop",
                    "usage": usage,
                    "model": b["model"],
                }
            ).encode()
            for b in bodies
        ]


def prompt(text: str, *follow_ups: str) -> PromptRow:
    turns = [Message(role="user", content=text)]
    return PromptRow(prompt_id=prompt_id(turns), prompt=turns, follow_ups=list(follow_ups))


def test_a_conversation_remembers_and_forgets() -> None:
    echo = Echo()
    talk = Conversation(echo, Sampling(max_tokens=9, seed=3), system="be brief")
    assert [talk.say("one").text, talk.say("two").text] == ["2:one", "4:two"]
    roles = [m["role"] for m in echo.asked[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert (echo.asked[1]["max_tokens"], echo.asked[1]["seed"]) == (9, 3)
    talk.forget()
    assert talk.say("three").text == "2:three"


def test_many_prompts_in_order_with_their_follow_ups() -> None:
    echo, said = Echo(), Recorder()
    prompts = [prompt("a", "then", "and"), prompt("b"), prompt("c", "so"), prompt("d")]
    found = answer_prompts(echo, prompts, Sampling(), emit=said)
    assert [[r.text for r in turns] for turns in found] == [
        ["1:a", "3:then", "5:and"], ["1:b"], ["1:c", "3:so"], ["1:d"],
    ]  # fmt: skip
    assert echo.asked[-1]["messages"][1] == {"role": "assistant", "content": "1:a"}
    assert [e.done for e in said.events if isinstance(e, Progress)] == [0, 2, 4, 6, 7]
    assert answer_prompts(echo, [], Sampling()) == []


def test_a_system_turn_of_the_prompts_own_stays() -> None:
    own = [Message(role="system", content="mine"), Message(role="user", content="x")]
    assert with_system(own, "other") == tuple(own)
    assert with_system(own[1:], None) == (own[1],)
    assert [m.content for m in with_system(own[1:], "other")] == ["other", "x"]


def test_a_template_that_refuses_is_said(make_tiny: Any, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system here') }}", encoding="utf-8")
    provider = LocalProvider(ModelSource(folder, "sha256:abc", "m", "real", None))
    with pytest.raises(UsageError, match="no system here"):
        answer_prompts(provider, [prompt("a")], Sampling())
