"""`zephyrctl edition`: the frozen settings that ship, what they repeat, and how two of them differ, to the token."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyrctl.cli.options import Session, common

if TYPE_CHECKING:
    from zephyrctl.cli.console import Console
    from zephyrctl.editions.load import Edition
    from zephyrctl.records import PreferenceRow, SftRow
    from zephyrctl.training.divergence import Decisions, Parting

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Editions: frozen settings of the paper, its public successors, one GPU, small models.",
)

_WIDTH = 100


@app.callback()
@common
def edition_cli(*, session: Session) -> None:
    """Takes the shared options where they stand before the verb."""


@app.command("ls")
@common
def ls_cli(*, session: Session) -> None:
    """List the editions and the stages that they settle.

    \b
    zephyrctl edition ls
    """
    from zephyrctl.cli.console import Console, plain_table
    from zephyrctl.editions.load import load, names

    found = [load(name) for name in names()]
    rows = tuple((edition.name, ", ".join(edition.sections), edition.brief) for edition in found)
    document = {
        "editions": [
            {"name": edition.name, "brief": edition.brief, "stages": list(edition.sections)}
            for edition in found
        ]
    }
    Console(session).result(plain_table(("edition", "settles", "what it is"), rows), document)


@app.command("show")
@common
def show_cli(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An edition, such as zephyr-7b/paper.")],
    *,
    session: Session,
) -> None:
    """Show an edition: what it repeats, from which source, what it cannot, and every setting.

    \b
    zephyrctl edition show zephyr-7b/handbook-0.2
    """
    from zephyrctl.cli.console import Console, plain_table
    from zephyrctl.cli.settled import shown
    from zephyrctl.editions.load import load

    edition = load(name)
    texts = [edition.name, textwrap.fill(edition.about, _WIDTH, break_on_hyphens=False)]
    for stage, section in edition.sections.items():
        rows = tuple((key, shown(value)) for key, value in section.items())
        texts.append(plain_table((stage, ""), rows))
    document = {"name": edition.name, "brief": edition.brief, "about": edition.about, **edition.sections}
    Console(session).result("\n\n".join(texts), document)


@app.command("diff")
@common
def diff_cli(
    first: Annotated[str, typer.Argument(metavar="A", help="An edition.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The edition to compare it with.")],
    *,
    session: Session,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="REF",
            help="Rows to compare: dialogues or pairs, a ref, a file, a folder.  [default: rows made for it]",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Model folder whose tokenizer is used.  [default: the sandbox's]"),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of --data to compare.")] = 5,
) -> None:
    """What differs between two editions: settings by stage, and the first differing tokens of sample rows.

    \b
    zephyrctl edition diff zephyr-7b/paper zephyr-7b/handbook-0.2
    zephyrctl edition diff one-gpu small --data prefs --tokenizer ./Mistral-7B-v0.1
    """
    from zephyrctl.cli.console import Console
    from zephyrctl.editions.load import load

    console, pair = Console(session), (load(first), load(second))
    differing = _settings(*pair)
    partings = _partings(*pair, session, console, data, tokenizer, rows)
    texts = [_settings_text(first, second, differing), _tokens_text(first, second, partings)]
    document = {
        "first": first,
        "second": second,
        "settings": differing,
        "tokens": [_document(stage, parting) for stage, parting in partings],
    }
    console.result("\n\n".join(texts), document)


def _settings(first: Edition, second: Edition) -> list[dict[str, Any]]:
    from zephyrctl.cli.settled import stage_config
    from zephyrctl.config import STAGES
    from zephyrctl.editions.compare import differences

    classes = {stage: stage_config(stage) for stage in STAGES}
    return [
        {"stage": one.stage, "setting": one.field, "first": one.first, "second": one.second}
        for one in differences(first, second, classes)
    ]


def _settings_text(first: str, second: str, differing: list[dict[str, Any]]) -> str:
    from zephyrctl.cli.console import plain_table
    from zephyrctl.cli.settled import shown

    if not differing:
        return "the same settings"
    rows = tuple(
        (one["stage"], one["setting"], shown(one["first"]), shown(one["second"])) for one in differing
    )
    return plain_table(("stage", "setting", first, second), rows)


def _partings(
    first: Edition,
    second: Edition,
    session: Session,
    console: Console,
    data: str | None,
    tokenizer: Path | None,
    rows: int,
) -> list[tuple[str, Parting]]:
    """Sample rows under both editions, by stage; a stage that one of them does not settle is left out, and said."""
    from zephyrctl.events import Note
    from zephyrctl.libraries import quiet
    from zephyrctl.training.divergence import pair_partings, sft_partings
    from zephyrctl.training.locate import sandbox_base

    dialogues, pairs = _rows(session, data, rows)
    folder = tokenizer or sandbox_base()
    whose = f"that of {tokenizer}" if tokenizer else "the sandbox's (--tokenizer FOLDER takes another)"
    console(Note(f"the tokenizer is {whose}; tokens are counted from 0"))
    found: list[tuple[str, Parting]] = []
    for stage, compared in (("sft", dialogues), ("dpo", pairs)):
        unsettled = [edition.name for edition in (first, second) if stage not in edition.sections]
        if unsettled:
            console(Note(f"no tokens of {stage}: {' and '.join(unsettled)} does not settle it"))
        elif compared:
            one, two = token_decisions(first, stage), token_decisions(second, stage)
            with quiet():
                partings = (
                    sft_partings(dialogues, folder, one, two)
                    if stage == "sft"
                    else pair_partings(pairs, folder, one, two)
                )
            found += [(stage, parting) for parting in partings]
    return found


def _rows(
    session: Session, data: str | None, limit: int
) -> tuple[list[tuple[str, SftRow]], list[tuple[str, PreferenceRow]]]:
    """Dialogues and pairs to compare: those that ship, or the first of `data`, which may hold either kind.

    Raises as `open_source` where it holds neither.
    """
    from itertools import islice

    from zephyrctl.artifacts.adopt import open_source
    from zephyrctl.cli.stage import open_store
    from zephyrctl.editions.samples import sample_dialogues, sample_pairs
    from zephyrctl.errors import BadRow, StageRejected, WrongKind

    if data is None:
        return sample_dialogues(), sample_pairs()
    store, found, refused = open_store(session), {}, []
    for kind in ("sft", "prefs"):
        try:
            source = open_source(store, data, kind, on_bad_row="skip")
            found[kind] = [(f"row {n}", row) for n, (_, _, row) in enumerate(islice(source.rows(), limit), 1)]
        except (BadRow, StageRejected, WrongKind) as error:
            refused.append(error)
    if not found:
        raise refused[0]
    dialogues: Any = found.get("sft", [])
    pairs: Any = found.get("prefs", [])
    return dialogues, pairs


def token_decisions(edition: Edition, stage: str) -> Decisions:
    """What the edition decides about the tokens of `sft` or `dpo`."""
    from zephyrctl.cli.settled import stage_config
    from zephyrctl.config import Layer, build
    from zephyrctl.training.divergence import Decisions

    layer = Layer(f"edition {edition.name}", edition.sections[stage])
    config: Any = build(stage_config(stage), [layer]).config
    of_stage = (
        {"truncation": config.truncation, "wrapped": config.packing == "wrapped"}
        if stage == "sft"
        else {"max_prompt_length": config.max_prompt_length, "answer_room": config.answer_room}
    )
    return Decisions(
        rules=config.rules(),
        max_length=config.max_length,
        chat_template=config.chat_template,
        default_template=config.default_template,
        system=config.system,
        date=config.template_date,
        keep_bos=config.bos is None,
        **of_stage,
    )


_SPOTS = 4
"""Spots of one row that are printed; --json has all."""
_RUN = 16
"""Tokens of a spot that --json spells out."""


def _tokens_text(first: str, second: str, partings: list[tuple[str, Parting]]) -> str:
    from zephyrctl.cli.console import plain_table

    if not partings:
        return "no rows whose tokens could be compared"
    lines: list[tuple[str, ...]] = []
    for stage, one in partings:
        name = f"{one.row}, {one.side}" if one.side else one.row
        sizes = tuple(
            f"{len(stream.tokens)} ({stream.with_loss})"
            if stream.dropped is None
            else f"dropped: {stream.dropped}"
            for stream in (one.first, one.second)
        )
        if not one.spots:
            lines.append((stage, name, *sizes, "-", "same", "same", ""))
        for number, spot in enumerate(one.spots[:_SPOTS]):
            own = (stage, name, *sizes) if number == 0 else ("", "", "", "")
            cells = _cell(spot.first, loss=spot.loss_only), _cell(spot.second, loss=spot.loss_only)
            lines.append((*own, _places(spot.at), *cells, _visible(spot.before[-24:])))
        if len(one.spots) > _SPOTS:
            lines.append(("", "", "", "", f"+{len(one.spots) - _SPOTS}", "further spots: --json", "", ""))
    head = ("stage", "row", "tokens (loss) of A", "of B", "at", f"A: {first}", f"B: {second}", "behind")
    return plain_table(head, tuple(lines))


def _places(at: tuple[int, int]) -> str:
    return str(at[0]) if at[0] == at[1] else f"{at[0]} / {at[1]}"


def _cell(run: tuple[Any, ...], *, loss: bool) -> str:
    """The first token of a run, its id, and whether it bears loss where that is the difference."""
    if not run:
        return "-"
    token = run[0]
    bears = (" with loss" if token.loss else " no loss") if loss else ""
    more = f" +{len(run) - 1}" if len(run) > 1 else ""
    return f"{_visible(token.text)} {token.id}{bears}{more}"


def _visible(text: str) -> str:
    return "'" + text.replace("\n", "↵").replace("\t", "⇥") + "'"


def _document(stage: str, parting: Parting) -> dict[str, Any]:
    def stream(one: Any) -> dict[str, Any]:
        return {"tokens": len(one.tokens), "with_loss": one.with_loss, "dropped": one.dropped}

    def run(tokens: tuple[Any, ...]) -> dict[str, Any]:
        spelled = [{"id": t.id, "text": t.text, "loss": t.loss} for t in tokens[:_RUN]]
        return {"count": len(tokens), "tokens": spelled}

    return {
        "stage": stage,
        "row": parting.row,
        "side": parting.side or None,
        "first": stream(parting.first),
        "second": stream(parting.second),
        "spots": [
            {
                "at": list(spot.at),
                "first": run(spot.first),
                "second": run(spot.second),
                "loss_only": spot.loss_only,
                "before": spot.before,
                "after": list(spot.after),
            }
            for spot in parting.spots
        ],
    }
