"""What a training stage reads: the model it starts from, the rows, and the tokens that they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zephyrctl.artifacts.adopt import Source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.models import ModelSource
from zephyrctl.artifacts.step import Work
from zephyrctl.artifacts.store import Store
from zephyrctl.chat.template import shipped_templates, template_source
from zephyrctl.errors import RefNotFound, UsageError
from zephyrctl.events import Event, Note
from zephyrctl.losses import LossSpec, make_loss
from zephyrctl.records import split_of
from zephyrctl.training.locate import locate_model
from zephyrctl.training.packing import How, pack_rows
from zephyrctl.training.settings import TrainingConfig
from zephyrctl.training.tokens import Tokens, require_few_dropped

ToTokens = Callable[..., Tokens]
Rows = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Method:
    """What sets one way of training apart. `to_tokens(rows, tokenizer)` renders and cuts; `loss` None = SFT."""

    task: str
    data_kind: str
    default_data: str
    made_by: str
    """The command that makes the default data."""
    to_tokens: ToTokens
    preview: Callable[[Rows, Any], Iterator[Event]]
    """Rows as a person can read them: the same decisions as `to_tokens`."""
    loss: LossSpec | None = None
    packing: Literal["none", "best-fit", "wrapped"] = "none"
    verify_ref: int = 0
    inputs: tuple[InputRef, ...] = ()
    """What is read besides model and data."""

    @property
    def reference(self) -> bool:
        """Whether the starting model is asked as the reference."""
        return self.loss is not None and make_loss(self.loss).needs_reference


@dataclass
class Data:
    """Token rows of both splits, and what the manifest says of them."""

    train: Tokens
    test: Tokens
    rows: Any
    """The training rows as they are fed: packed where that is wanted."""
    held_out: int = 0
    """Rows held out here, because their source came without splits."""
    rejects: list[dict[str, Any]] = field(default_factory=list)
    shares: list[dict[str, Any]] = field(default_factory=list)
    """What each source of a mixture gave; empty for one source alone."""

    def counts(self) -> dict[str, Any]:
        """Counts of the training rows by name, those of the held-out rows under `test`."""
        return {**dict(sorted(self.train.counts.items())), "test": dict(sorted(self.test.counts.items()))}


def starting_model(config: TrainingConfig, store: Store, method: Method) -> ModelSource:
    """The model to start from. Raises UsageError where none is named, RefNotFound, IntegrityError."""
    if config.init is not None:
        return locate_model(store, config.init)
    if method.loss is None:
        raise UsageError("no model to start from", hint="--init sandbox, --init ./folder or --init org/name")
    models = [store.newest(name, kind="model", sides=True) for name in store.names()]
    known = [f"--init {m.ref}" for m in models if m is not None]
    raise UsageError(
        f"{method.task} needs the model to start from; it is also the reference",
        hint="one of: " + ", ".join(known)
        if known
        else "--init sandbox, --init ./folder, or first: zephyrctl sft",
    )


def template_input(config: TrainingConfig) -> list[InputRef]:
    """The chat templates that the settings name, by their content; of `default_template` only one from a file, since a
    name says what ships. Raises UsageError, RefNotFound."""
    named = {"chat_template": config.chat_template}
    if config.default_template not in shipped_templates():
        named["default_template"] = config.default_template
    return [
        InputRef(role=role, ref=name, digest=template_source(name)[1], kind="template")
        for role, name in named.items()
        if name is not None
    ]


def open_data(config: TrainingConfig, work: Work, method: Method, init: ModelSource) -> Source:
    """The rows to train on: those named, or the newest of the preceding stage. Raises RefNotFound, IntegrityError."""
    texts = list(config.data)
    if not texts:
        newest = work.store.newest(method.default_data, world=init.world, kind=method.data_kind)
        if newest is None:
            raise RefNotFound(
                f"no {method.default_data} of the {init.world} world in the store to train on",
                hint=f"zephyrctl {method.made_by}, or name your own: --data FILE",
            )
        work.emit(
            Note(f"training on {newest.ref}, the newest {method.default_data} of the {init.world} world")
        )
        texts = [str(newest.ref)]
    return open_mixture(
        work.store,
        texts,
        method.data_kind,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        test_fraction=config.test_fraction,
        emit=work.emit,
    )


def split_rows(config: TrainingConfig, source: Source) -> tuple[Rows, Rows, int]:
    """Training rows, held-out rows, and how many of those were drawn here. Splits are those stored; where a source has
    none, the prompt's hash decides."""
    train: list[tuple[str, Any]] = []
    test: list[tuple[str, Any]] = []
    drawn: list[tuple[str, Any]] = []
    row: Any
    for where, split, row in source.rows():
        if split is None and split_of(row.prompt_id, config.test_fraction) == "test":
            drawn.append((where, row))
        else:
            (test if split == "test" else train).append((where, row))
    return (train, [*test, *drawn], len(drawn)) if train else (drawn, test, 0)


def tokenise(config: TrainingConfig, source: Source, tokenizer: Any, method: Method) -> Data:
    """All rows as token rows, packed where that is wanted. Raises StageRejected where too many are dropped."""
    train, test, held_out = split_rows(config, source)
    # what is wrapped is cut by the packs, not row by row
    whole = {"max_length": None} if method.packing == "wrapped" else {}
    kept = method.to_tokens(train, tokenizer, **whole)
    require_few_dropped(kept, config.max_dropped)
    data = Data(kept, method.to_tokens(test, tokenizer), kept.rows, held_out)
    if method.packing != "none" and len(kept.rows):
        how: How = method.packing
        data.rows = pack_rows(kept.rows, config.max_length, how, seed=config.seed)
        kept.counts["packs"] = len(data.rows)
    data.rejects = [*source.rejects, *data.train.rejects, *data.test.rejects]
    data.shares = source.shares()
    return data
