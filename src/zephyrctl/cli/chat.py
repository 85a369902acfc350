"""`zephyrctl chat`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.artifacts.store import Store
    from zephyrctl.cli.console import Console
    from zephyrctl.providers.base import Reading, Sampling
    from zephyrctl.providers.local.provider import LocalProvider
    from zephyrctl.records import PromptRow

_GAP = " │ "
_NARROWEST = 24
_HELP = "an empty line or /quit leaves, /reset begins anew"


@common
def chat_cli(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A model: ckpt/NAME, NAME@vN, a folder, sandbox.")
    ],
    ref2: Annotated[
        str | None, typer.Argument(metavar="[REF2]", help="Another one, to talk to both side by side.")
    ] = None,
    *,
    session: Session,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="Prompts to answer: .txt (one a line), .jsonl, an artifact, or - (.jsonl on stdin).",
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Only so many of them.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system turn before everything.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens an answer may have.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 = always the likeliest token.")
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option("--top-p", min=0, max=1, help="Draw from the likeliest tokens of so much probability."),
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seeds the drawing: equal words, equal answers.")] = 42,
) -> None:
    """Talk to one model, or to two side by side; or have them answer many prompts.

    Answers go to stdout. At a terminal the conversation goes on until you leave it; an empty line does. Equal prompts,
    settings and models give equal answers. Models on this machine only: nothing is paid, nothing is recorded.

    \b
    zephyrctl chat ckpt/dpo-e3
    zephyrctl chat ckpt/sft-e1 ckpt/dpo-e3 --prompt questions.txt
    zephyrctl chat dpo-e3@v1 --prompt prefs --rows 20 --temperature 0 --json
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.cli.stage import open_store
    from zephyrctl.errors import UsageError
    from zephyrctl.providers.base import Sampling

    console, store = Console(session), open_store(session)
    if prompt is None and not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to talk at", hint="--prompt FILE, or --prompt - for JSON lines on stdin"
        )
    providers = [_provider(store, name) for name in (ref, ref2) if name is not None]
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    if prompt is not None:
        _answer_all(console, store, providers, prompt, rows, sampling, system)
    else:
        _converse(console, providers, sampling, system)


def _provider(store: Store, name: str) -> LocalProvider:
    """The model as one that answers on this machine. Raises UsageError for one that does not."""
    from zephyrctl.errors import UsageError
    from zephyrctl.modelspec import parse_model
    from zephyrctl.providers.local.provider import LocalProvider
    from zephyrctl.training.locate import locate_model

    spec = parse_model(name)
    role = spec.where == "sandbox" and spec.text not in ("sandbox", "sandbox:base")
    if role or spec.where not in ("sandbox", "artifact", "folder", "hub"):
        raise UsageError(
            f"'{name}' is no model with weights; chat is for models on this machine",
            hint="ckpt/NAME, NAME@vN, ./folder or sandbox; gen-prefs --pool asks models over an API, and records it",
        )
    return LocalProvider(locate_model(store, spec))


def _answer_all(
    console: Console,
    store: Store,
    providers: Sequence[LocalProvider],
    source: str,
    rows: int | None,
    sampling: Sampling,
    system: str | None,
) -> None:
    from zephyrctl.providers.local.conversing import answer_prompts

    prompts = _prompts(store, source, rows, console)
    columns: list[list[list[Reading]]] = []
    for provider in providers:
        columns.append(answer_prompts(provider, prompts, sampling, system=system, emit=console))
        provider.close()  # one model in memory at a time
    labels = [provider.label for provider in providers]
    answers = [[column[i] for column in columns] for i in range(len(prompts))]
    width = shutil.get_terminal_size((110, 24)).columns
    blocks = [
        block(_turns(one), labels, [[r.text for r in turns] for turns in found], width, number=i)
        for i, (one, found) in enumerate(zip(prompts, answers, strict=True), 1)
    ]
    document = {
        "models": labels,
        "rows": [_row(one, found) for one, found in zip(prompts, answers, strict=True)],
    }
    console.result("\n\n".join(blocks), document)


def _prompts(store: Store, source: str, rows: int | None, console: Console) -> list[PromptRow]:
    from itertools import islice

    from zephyrctl.artifacts.adopt import open_source
    from zephyrctl.records import PromptRow

    found = open_source(store, source, "prompts", emit=console)
    return [row for _, _, row in islice(found.rows(), rows) if isinstance(row, PromptRow)]


def _turns(prompt: PromptRow) -> list[str]:
    """What the model is asked, turn by turn; the first holds the whole opening."""
    opening = prompt.prompt
    if len(opening) == 1:
        return [opening[0].content, *prompt.follow_ups]
    return ["\n".join(f"{m.role}: {m.content}" for m in opening), *prompt.follow_ups]


def _row(prompt: PromptRow, found: Sequence[Sequence[Reading]]) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "prompt": [{"role": m.role, "content": m.content} for m in prompt.prompt],
        "follow_ups": list(prompt.follow_ups),
        "answers": [[_answer(reading) for reading in turns] for turns in found],
    }


def _answer(reading: Reading) -> dict[str, Any]:
    return {
        "text": reading.text,
        "finish_reason": reading.finish_reason,
        "tokens": None if reading.tokens is None else reading.tokens.completion,
        **({"reasoning": reading.reasoning} if reading.reasoning else {}),
    }


def _converse(
    console: Console, providers: Sequence[LocalProvider], sampling: Sampling, system: str | None
) -> None:
    from zephyrctl.cli.plain import printable
    from zephyrctl.events import Note
    from zephyrctl.providers.local.conversing import Conversation

    talks = [Conversation(provider, sampling, system) for provider in providers]
    labels = [provider.label for provider in providers]
    console(Note(f"talking to {' and '.join(labels)}; {_HELP}"))
    while True:
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        said = line.strip()
        if not said or said == "/quit":
            return
        if said == "/reset":
            for talk in talks:
                talk.forget()
            console(Note("all forgotten"))
            continue
        readings = [talk.say(said) for talk in talks]
        width = shutil.get_terminal_size((110, 24)).columns
        if len(readings) == 1:
            text = readings[0].text
        else:
            text = side_by_side(labels, [reading.text for reading in readings], width)
        sys.stdout.write(printable(text).rstrip("\n") + "\n")
        sys.stdout.flush()
        for label, reading in zip(labels, readings, strict=True):
            if reading.finish_reason == "length":
                console(Note(f"{label}: cut after {sampling.max_tokens} tokens or at the end of its context"))


def block(
    asked: Sequence[str], labels: Sequence[str], answers: Sequence[Sequence[str]], width: int, *, number: int
) -> str:
    """One prompt and its answers, turn by turn, as text of `width` columns. `answers[model][turn]`."""
    parts = []
    for turn, question in enumerate(asked):
        head = f"[{number}] " if not turn else "    "
        parts.append(
            textwrap.indent("\n".join(_wrapped(question, width - 4)), "    ").replace("    ", head, 1)
        )
        said = [turns[turn] for turns in answers]
        parts.append(
            "\n".join(_wrapped(said[0], width)) if len(said) == 1 else side_by_side(labels, said, width)
        )
    return "\n".join(parts)


def side_by_side(labels: Sequence[str], texts: Sequence[str], width: int) -> str:
    """The texts in columns of equal width under their labels, lines wrapped at spaces."""
    each = max(_NARROWEST, (width - len(_GAP) * (len(texts) - 1)) // len(texts))
    columns = [
        [*_wrapped(label, each), "─" * min(each, len(label)), *_wrapped(text, each)]
        for label, text in zip(labels, texts, strict=True)
    ]
    height = max(map(len, columns))
    filled = [column + [""] * (height - len(column)) for column in columns]
    return "\n".join(
        _GAP.join(cell.ljust(each) for cell in line).rstrip() for line in zip(*filled, strict=True)
    )


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of `text`, each broken where it is longer than `width`; blank lines stay."""
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(line, width, drop_whitespace=True, replace_whitespace=False) or [""]
    return lines
