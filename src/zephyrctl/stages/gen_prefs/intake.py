"""Which prompts are asked: where they come from, and what is sorted out before any money is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from zephyrctl.artifacts.adopt import open_source
from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.asking.calling import mine
from zephyrctl.asking.prompts import Seed, from_sandbox, from_source
from zephyrctl.benchmarks.screening import FILTERS, SUITES, Screening, compares
from zephyrctl.curation.base import Dropped
from zephyrctl.events import Note
from zephyrctl.records import Message, prompt_id
from zephyrctl.stages.gen_prefs.answered import LeftOut, reject
from zephyrctl.stages.gen_prefs.config import GenPrefsConfig
from zephyrctl.stages.gen_prefs.existing import Given, GivenPrompts

if TYPE_CHECKING:
    from zephyrctl.artifacts.adopt import Source
    from zephyrctl.artifacts.step import Work

SFT_DATA, PROMPTS = "sft-data", "prompts"
MIXTURE = "mixture"
RECORDS = (SUITES, FILTERS, MIXTURE)
"""What is told of the prompts in the manifest; all of it is about the whole step."""


class Intake(Protocol):
    """Prompts not read yet."""

    rejects: list[dict[str, Any]]
    """The bad rows that were left out, once `load` has run."""

    @property
    def inputs(self) -> list[InputRef]:
        """What they are read from, for the step key."""
        ...

    @property
    def world(self) -> str:
        """The world they belong to."""
        ...

    @property
    def named(self) -> str:
        """What they are taken from, in words."""
        ...

    @property
    def shares(self) -> list[dict[str, Any]]:
        """What each source of a mixture gave, once `load` has run; empty where nothing is mixed."""
        ...

    def load(self, *, seed: int, test_fraction: float) -> list[Seed]:
        """The prompts, in the order in which they are used."""
        ...


@dataclass(frozen=True)
class Prompts:
    """The prompts of this process: those to ask, those sorted out, how many there are in all shards, the bad rows of
    the input, and what each source of a mixture gave."""

    fresh: list[Seed]
    left_out: list[LeftOut]
    whole: int
    bad_rows: list[dict[str, Any]] = field(default_factory=list)
    shares: list[dict[str, Any]] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """Prompts of this process, those sorted out too."""
        return len(self.fresh) + len(self.left_out)


def open_intake(config: GenPrefsConfig, work: Work, world: str) -> Intake:
    """The prompts asked for, else those of the newest `sft-data` of that world, else the seeds that come along: the
    sandbox's own, or those that ship with the package."""
    store = work.store
    if config.prompts:
        return from_source(_mixture(config, work, config.prompts, "prompts"), config.rows)
    newest = store.newest(SFT_DATA, world=world, kind="sft")
    if newest is not None:
        work.emit(Note(f"prompts: those of {newest.ref}, the newest {SFT_DATA} (--prompts names others)"))
        source = open_source(store, str(newest.ref), "prompts", on_bad_row=config.on_bad_row)
        return from_source(source, config.rows)
    if world == "sandbox":
        return from_sandbox(config.rows, config.seed)
    from zephyrctl.asking.seeds import from_package

    imported = store.newest(PROMPTS, world=world, kind="prompts")
    others = (
        "--prompts FILE or REF names others" if imported is None else f"--prompts {imported.ref} takes yours"
    )
    work.emit(
        Note(
            f"there is no {SFT_DATA} of the {world} world here: the prompts are the seed tasks that ship with "
            f"zephyrctl, a few hundred ({others})"
        )
    )
    return from_package(config.rows)


def open_given(config: GenPrefsConfig, work: Work) -> GivenPrompts:
    """The prompts of `--completions`, with what they bring along."""
    assert config.completions is not None
    return GivenPrompts(_mixture(config, work, [config.completions], "feedback"), config.rows)


def _mixture(config: GenPrefsConfig, work: Work, texts: Sequence[str], kind: str) -> Source:
    return open_mixture(
        work.store,
        texts,
        kind,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        test_fraction=config.test_fraction,
        emit=work.emit,
    )


class Screen(Screening):
    """What prompts go through before they are asked. It decides over all prompts, also where a process takes only a
    part of them, so every part comes to the same decisions."""

    def sift(self, whole: Sequence[Seed]) -> list[Seed | LeftOut]:
        """What becomes of each prompt, in the same order: asked, as it is or as a filter changed it, or left out.

        Equal prompts are asked once, the first of them; then the suites, then the filters. A filter that changes a
        prompt with completions of its own leaves it as it is: they answer what was asked.
        """
        fates: dict[int, Seed | LeftOut] = {}
        first = _first_of_each(whole, fates)
        clean = self._compared(first, fates)
        kept = [one for seed in clean if (one := self._filtered(seed, fates)) is not None]
        for seed in _first_of_each(kept, fates):
            fates[seed.position] = seed
        return [fates[seed.position] for seed in whole]

    def _compared(self, seeds: Sequence[Seed], fates: dict[int, Seed | LeftOut]) -> list[Seed]:
        if self._suites is None:
            return list(seeds)
        kept, rejects = self._suites.sift(seeds, drop=self._drop)
        going_on = {seed.position for seed in kept}
        dropped = (seed for seed in seeds if seed.position not in going_on)
        fates.update({seed.position: LeftOut(seed, row) for seed, row in zip(dropped, rejects, strict=True)})
        return kept

    def _filtered(self, seed: Seed, fates: dict[int, Seed | LeftOut]) -> Seed | None:
        found = self._pipeline.apply(seed.row.prompt)
        if isinstance(found, Dropped):
            fates[seed.position] = _left(seed, found.reason, found.detail)
            return None
        if len(found) != 1:
            fates[seed.position] = _left(seed, "cut_up", f"a filter makes {len(found)} dialogues of it")
            return None
        return seed if isinstance(seed, Given) else _changed(seed, found[0])


def open_screen(config: GenPrefsConfig, work: Work, world: str) -> Screen:
    """The screen of a step of `world`. The sandbox's own suites are held out from its prompts by construction, so
    there only suites that were named are compared with.

    Raises UsageError for a filter that is not known, RefNotFound for a suite or a tokenizer that is not there,
    MissingExtra.
    """
    return Screen.opened(
        config,
        work,
        compared=compares(world, config),
        refusal="--filter truecase learns from all rows: with more --rows the first prompts would become others",
        remedy="beforehand: zephyrctl import FILE --as prompts --filter truecase",
    )


def sorted_out(config: GenPrefsConfig, intake: Intake, screen: Screen) -> Prompts:
    """The prompts of this process, after the screen has seen those of all of them."""
    whole = intake.load(seed=config.seed, test_fraction=config.test_fraction)
    fates = screen.sift(whole)
    fresh: list[Seed] = []
    left_out: list[LeftOut] = []
    for seed in mine(config, whole):
        fate = fates[seed.position]
        if isinstance(fate, LeftOut):
            left_out.append(fate)
        else:
            fresh.append(fate)
    return Prompts(fresh, left_out, len(whole), intake.rejects, intake.shares)


def _first_of_each(seeds: Sequence[Seed], fates: dict[int, Seed | LeftOut]) -> list[Seed]:
    seen: set[str] = set()
    first = []
    for seed in seeds:
        if seed.row.prompt_id in seen:
            fates[seed.position] = _left(seed, "duplicate", "an earlier row has the same prompt")
        else:
            first.append(seed)
        seen.add(seed.row.prompt_id)
    return first


def _left(seed: Seed, reason: str, detail: str) -> LeftOut:
    return LeftOut(seed, reject(seed, reason, detail))


def _changed(seed: Seed, messages: Sequence[Message]) -> Seed:
    if list(messages) == seed.row.prompt:
        return seed
    row = seed.row.model_copy(update={"prompt": list(messages), "prompt_id": prompt_id(messages)})
    return replace(seed, row=row)
