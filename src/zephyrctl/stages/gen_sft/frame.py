"""What all methods of `gen-sft` share: the teacher and the step, carrying it out, and judging what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.step import Step, StepResult, Work
from zephyrctl.asking.calling import Asker, name_of, site_of
from zephyrctl.asking.errand import Errand, Training
from zephyrctl.asking.seats import FAILURES, Seat, check_keys, joint_world, take_seat
from zephyrctl.asking.sketch import Sketch
from zephyrctl.config import digest_of
from zephyrctl.errors import StageRejected
from zephyrctl.events import Note, Warning_
from zephyrctl.ledger.ledger import Ledger
from zephyrctl.providers.base import UNPAID, Ask, Sampling
from zephyrctl.records import Message, prompt_id, row_seed
from zephyrctl.stages.gen_sft.config import GenSftConfig

NAME = "sft-data"
_CUT_OFF_WARNING = 0.01
_FOR_FREE = (
    "public dialogues cost nothing: zephyrctl import hf://HuggingFaceH4/ultrachat_200k --as sft brings 208k of another "
    "teacher's"
)

R = TypeVar("R")
C = TypeVar("C")


@dataclass(frozen=True)
class Frame:
    """A step of gen-sft that is about to begin: its teacher, its key, the hashes of its prompt files."""

    config: GenSftConfig
    work: Work
    teacher: Seat
    step: Step
    templates: Mapping[str, str]

    def sampling(self, seed: int = 0) -> Sampling:
        """The teacher's sampling settings."""
        config = self.config
        return self.teacher.sampling(
            temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, seed=seed
        )

    def ask(self, said: Sequence[Message], purpose: str, *, draw: int = 0) -> Ask:
        """A request seeded by its own text: an equal request is an equal request, wherever it stands; `draw` 1, 2 …
        ask for further replies to it."""
        seed = row_seed(self.config.seed, prompt_id(said), *([draw] if draw else []))
        return Ask(tuple(said), self.sampling(seed), draw=draw, purpose=purpose)

    def carry_out(
        self,
        rows: Sequence[R],
        *,
        draw: Callable[[Sketch, Sequence[R]], None],
        through: Callable[[Sequence[R], Asker], C],
        make: Callable[[Errand[R, C]], StepResult],
        unit: str,
        training: Training | None = None,
    ) -> StepResult:
        """Estimates, gets consent, and has `make` carry the errand out; the teacher is let go of at the end."""
        if self.step.world != "sandbox" and not self.config.accept_partial:
            self.work.emit(Note(_FOR_FREE))
        with Ledger.open(self.work.store.ledger_path, emit=self.work.emit) as ledger:
            try:
                errand = Errand(
                    config=self.config,
                    work=self.work,
                    step=self.step,
                    ledger=ledger,
                    rows=rows,
                    providers=[self.teacher.provider],
                    draw=draw,
                    through=through,
                    teacher=self.teacher,
                    unit=unit,
                    training=training,
                )
                return errand.prepare() or make(errand)
            finally:
                self.teacher.close()


def open_frame(
    config: GenSftConfig,
    work: Work,
    *,
    inputs: Sequence[InputRef],
    world: str,
    templates: Mapping[str, str],
) -> Frame:
    """The frame for a method that reads `inputs` of `world` and asks with the prompt files `templates`.

    Raises AuthError for a missing key, UsageError and RefNotFound for the teacher.
    """
    site = site_of(config, work.project)
    teacher = take_seat(work.store, check_keys([config.teacher], site)[0], site)
    every = [
        *inputs,
        *teacher.inputs("teacher"),
        InputRef(role="templates", ref="zephyrctl", digest=digest_of(dict(templates)), kind="templates"),
    ]
    joint = joint_world([teacher.world, world])
    step = Step(work, config, name=name_of(config, NAME), kind="sft", inputs=every, world=joint)
    return Frame(config, work, teacher, step, dict(templates))


def judge_outcome(
    config: GenSftConfig,
    work: Work,
    *,
    tried: int,
    kept: int,
    dropped: Counter[str],
    unit: str,
    more: str = "",
) -> None:
    """Says what came of it, and warns of replies that were cut off. `tried` and `kept` count `unit`; `dropped` those
    that failed or were left out, by reason.

    Raises StageRejected (exit 9) when more than `max_failures` of them failed.
    """
    failed = sum(dropped[reason] for reason in FAILURES)
    rate = failed / max(1, tried)
    told = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items())) or "none"
    if rate > config.max_failures:
        raise StageRejected(
            f"gen-sft: {rate:.0%} of the {unit} failed, {config.max_failures:.0%} are allowed ({told})",
            hint=f"--set max_failures={min(1.0, rate + 0.05):.2f} accepts it; what was paid is kept",
        )
    cut = dropped["cut_off"] + dropped["reasoning_cut"]
    if cut > _CUT_OFF_WARNING * tried:
        reasoning = f" ({dropped['reasoning_cut']} while still reasoning)" if dropped["reasoning_cut"] else ""
        work.emit(
            Warning_(
                f"{cut} of {tried} replies were cut off at max_tokens={config.max_tokens}{reasoning} "
                "and dropped; --set max_tokens=… asks for longer ones"
            )
        )
    work.emit(Note(f"kept {kept} {unit}; dropped: {told}{more}"))


def tried_of(kept: int, dropped: Counter[str]) -> int:
    """How many were tried: kept or dropped, but not those that a replay could not pay for."""
    return kept + dropped.total() - dropped[UNPAID]
