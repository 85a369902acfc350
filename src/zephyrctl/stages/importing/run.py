"""`import SRC --as KIND`: the user's own data or model as an artifact."""

from __future__ import annotations

from collections.abc import Iterator

from zephyrctl.artifacts.adopt import Source, open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.ref import check_name
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.lengths import open_counter
from zephyrctl.benchmarks.decontamination import open_decontaminator
from zephyrctl.curation.pipeline import make_pipeline
from zephyrctl.errors import BadRow, UsageError
from zephyrctl.events import Note
from zephyrctl.records import Record, split_of
from zephyrctl.stages.importing.config import ImportConfig
from zephyrctl.stages.importing.models import import_model
from zephyrctl.stages.importing.sieve import FILTERED, Reject, Sieve

DEFAULT_NAMES = {
    "prompts": "prompts",
    "sft": "sft-data",
    "feedback": "feedback",
    "prefs": "prefs",
    "eval": "eval",
}
KINDS = (*DEFAULT_NAMES, "model")


def run(config: ImportConfig, work: Work) -> StepResult:
    """An artifact of `config.kind` with the content of `config.source`; its default name is the one that the next
    stage looks for (prompts are named with --prompts).

    Rows keep the source's splits; what is not split is split by prompt. Raises as `open_source`, `make_pipeline`,
    `open_decontaminator` and `check_model_folder`.
    """
    kind = config.kind
    if kind not in KINDS:
        raise UsageError(f"'{kind}' cannot be imported", hint="known kinds: " + ", ".join(KINDS))
    if config.filters and kind not in FILTERED:
        raise UsageError(f"there are no filters for kind {kind}", hint="kinds: " + ", ".join(FILTERED))
    if kind == "model":
        return import_model(config, work)
    name = check_name(config.out or DEFAULT_NAMES[kind])
    pipeline = make_pipeline(
        config.filters,
        count=open_counter(work.store, config.tokenizer) if config.tokenizer is not None else None,
    )
    source = _open(config, work)
    inputs = [source.input("source"), *pipeline.inputs()]
    sieve = None
    if kind in FILTERED:
        suites = open_decontaminator(config.suites, work.project, work.emit)
        inputs += suites.inputs()
        sieve = Sieve(pipeline, suites, config.contaminated == "drop")
    return _make(config, work, name, source, inputs, sieve)


def _open(config: ImportConfig, work: Work) -> Source:
    try:
        source = open_source(
            work.store, config.source, config.kind, on_bad_row=config.on_bad_row, emit=work.emit
        )
    except BadRow as error:
        error.hint = (error.hint or "").replace("--set on_bad_row=skip", "--on-bad-row skip")
        raise
    work.emit(Note(f"read {config.source} as {source.shape}"))
    return source


def _make(
    config: ImportConfig,
    work: Work,
    name: str,
    source: Source,
    inputs: list[InputRef],
    sieve: Sieve | None,
) -> StepResult:
    step = Step(work, config, name=name, kind=config.kind, inputs=inputs, world=source.world)
    if (done := step.done()) is not None:
        return done
    if work.dry_run:
        work.emit(
            Note(f"would make {step.name} (kind {step.kind}) of {sum(1 for _ in source.rows()):,} rows")
        )
        return StepResult(None, None)
    with step.open() as staging:
        if sieve is not None:
            sieve.learn(source)
        for split, rows in _rows(source, sieve, config.test_fraction, staging.write_rejects):
            staging.write_rows(split, rows)
        staging.write_rejects(source.rejects)
        staging.extra["shape"] = source.shape
        if sieve is not None:
            if config.filters:
                staging.counts["filters"] = sieve.pipeline.counts()
                for told in sieve.pipeline.sentences():
                    work.emit(Note(told))
            staging.extra["decontamination"] = sieve.suites.record()
            _tell(work, sieve)
        return step.result(staging.commit())


def _rows(
    source: Source, sieve: Sieve | None, test_fraction: float, reject: Reject
) -> Iterator[tuple[str, list[Record]]]:
    """What is kept, with its split; parts of one dialogue stay together."""
    whole = ((split, [row]) for _, split, row in source.rows())
    for split, rows in whole if sieve is None else sieve.kept(source, reject):
        yield split or split_of(str(getattr(rows[0], "prompt_id", "")), test_fraction), rows


def _tell(work: Work, sieve: Sieve) -> None:
    if sieve.dropped:
        told = ", ".join(f"{n:,} {reason}" for reason, n in sorted(sieve.dropped.items()))
        work.emit(Note(f"left out: {told} (zephyrctl artifacts cat REF --rejects shows them)"))
