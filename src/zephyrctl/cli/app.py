"""The `zephyrctl` app, and `main`, where every error becomes one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

import zephyrctl
from zephyrctl.cli import (
    artifacts,
    artifacts_compare,
    artifacts_merge,
    binarize,
    chat,
    config_,
    demo,
    doctor,
    dpo,
    edition,
    eval_,
    fetch,
    gen_prefs,
    gen_sft,
    import_,
    launch,
    ledger,
    sft,
    why,
)
from zephyrctl.cli.console import Console
from zephyrctl.cli.options import Session, common
from zephyrctl.errors import EnvironmentFault, Interrupted, MissingExtra, UsageError, ZephyrError, no_space

_EXTRA_OF = {
    "torch": "train", "transformers": "train", "trl": "train", "datasets": "train", "accelerate": "train",
    "safetensors": "train", "peft": "train", "deepspeed": "deepspeed", "lm_eval": "eval", "sklearn": "eval",
    "altair": "report", "datasketch": "dedup",
}  # fmt: skip

app = typer.Typer(
    name="zephyrctl",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    help="From seed prompts to an evaluated, aligned model: dSFT, AI feedback, dDPO, evaluation.\n\n"
    "stdout carries the result only, one line; all else goes to stderr. Start with: zephyrctl demo\n\n"
    "Exit codes: 0 done, 1 a fault of zephyrctl, 2 usage or config, 3 environment, 4 not found, 5 integrity, 6 key, "
    "7 budget, 8 quality gate, 9 outcome rejected, 75 try again, 129/130/143 interrupted.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(zephyrctl.__version__)
        raise typer.Exit


@app.callback()
@common
def _root(
    *,
    session: Session,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("demo", short_help="The whole recipe, offline, on a CPU.")(demo.demo_cli)
app.command("gen-sft", short_help="Dialogues from seed prompts and a teacher.")(gen_sft.gen_sft_cli)
app.command("sft", short_help="Fine-tune a model on dialogues (dSFT).")(sft.sft_cli)
app.command("gen-prefs", short_help="Rated answers of a pool of models.")(gen_prefs.gen_prefs_cli)
app.command("binarize", short_help="Rated answers to chosen/rejected pairs.")(binarize.binarize_cli)
app.command("dpo", short_help="Preference optimisation on pairs (dDPO).")(dpo.dpo_cli)
app.command("eval", short_help="Score a model, with intervals.")(eval_.eval_cli)
app.command("import", short_help="Take your own data or model in.")(import_.import_cli)
app.command("why", short_help="Where a row comes from, with calls and cents.")(why.why_cli)
app.command("view", short_help="Rows as one HTML page.")(why.view_cli)
app.command("chat", short_help="Talk to a model, or to two side by side.")(chat.chat_cli)
app.command("doctor", short_help="What this machine has and lacks.")(doctor.doctor_cli)
app.command("fetch", short_help="Fetch what a machine without a network needs.")(fetch.fetch_cli)
artifacts.app.command("merge")(artifacts_merge.merge_cli)
artifacts.app.command("diff")(artifacts_compare.diff_cli)
artifacts.app.command("gc")(artifacts_compare.gc_cli)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(ledger.app, name="ledger")
app.add_typer(edition.app, name="edition")
app.add_typer(config_.app, name="config")
app.add_typer(launch.app, name="launch")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminated)
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code of design §1. Never raises what a user could have caused."""
    session = Session()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments, standalone_mode=False, obj=session)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - what is left to flush goes nowhere
        return 0
    except (Exception, KeyboardInterrupt) as error:
        session.json_ = session.json_ or "--json" in arguments
        session.debug = session.debug or "--debug" in arguments
        return _fail(error, session)
    return code if isinstance(code, int) else 0


def _fail(error: BaseException, session: Session) -> int:
    known = _as_known(error)
    if session.debug:
        traceback.print_exception(error)
    if known is None:
        known = ZephyrError(
            f"a fault in zephyrctl itself: {type(error).__name__}: {error}",
            hint="run the same command with --debug and report what it prints; nothing that was finished is lost",
        )
    Console(session).failure(_redacted(known))
    return known.exit_code


def _as_known(error: BaseException) -> ZephyrError | None:
    match error:
        case ZephyrError():
            return error
        case KeyboardInterrupt(args=(int() as number,)):  # a second signal: the first gives the exit code
            return Interrupted(number)
        case KeyboardInterrupt():
            return Interrupted(signal.SIGINT)
        case typer.Abort():
            return UsageError(
                "stopped: no answer was given", hint="give the answer as a flag; --help names it"
            )
        case typer.TyperException():
            return _usage(error)
        case ModuleNotFoundError(name=str() as name) if name.split(".")[0] in _EXTRA_OF:
            return MissingExtra(name.split(".")[0], _EXTRA_OF[name.split(".")[0]])
        case MemoryError():
            return EnvironmentFault("out of memory", hint="use a smaller --set micro_batch or --max-length")
        case OSError(errno=28 | 122 | 27):
            return no_space(error.filename or "the store", error.strerror)
        case PermissionError():
            return EnvironmentFault(
                f"not allowed: {error.filename}: {error.strerror}", hint="check the folder's owner"
            )
    return None


def _usage(error: Any) -> UsageError:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "zephyrctl"
    return UsageError(text, hint=f"{command} --help")


def _redacted(error: ZephyrError) -> ZephyrError:
    from zephyrctl.redact import redact

    error.message = redact(error.message)
    error.hint = redact(error.hint) if error.hint else error.hint
    return error


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
