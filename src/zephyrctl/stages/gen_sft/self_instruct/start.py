"""What a bootstrap starts from: the seed tasks, and the examples that the teacher is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.artifacts.mixture import open_mixture
from zephyrctl.artifacts.step import Work
from zephyrctl.asking.prompts import Seed, Seeds, from_sandbox, from_source
from zephyrctl.asking.seeds import from_package, seed_tasks
from zephyrctl.config import canonical
from zephyrctl.errors import UsageError
from zephyrctl.modelspec import parse_model
from zephyrctl.stages.gen_sft.config import GenSftConfig
from zephyrctl.stages.gen_sft.screen import Screen
from zephyrctl.stages.gen_sft.self_instruct.reading import MOST_WORDS, word_count
from zephyrctl.stages.gen_sft.self_instruct.requests import Examples

SANDBOX_SEEDS = 24
"""Two of each family: its wordings are few, so more seeds would leave little that is new."""


@dataclass
class Start:
    """Seed prompts, not read yet, and the examples.

    `load` fills `whole`, all seeds, and `rejects`: bad rows, seeds that overlap with an evaluation suite, and those too
    long to be shown.
    """

    seeds: Seeds
    examples: Examples
    shipped: dict[str, str]
    """The instruction of each shipped seed by its whole prompt; empty where other seeds are used."""
    whole: list[Seed] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    @property
    def inputs(self) -> list[InputRef]:
        """The seeds and the examples as inputs of the step."""
        shown = InputRef(role="examples", ref="zephyrctl/seeds", digest=self.examples.digest, kind="prompts")
        return [*self.seeds.inputs, shown]

    def load(self, config: GenSftConfig, screen: Screen) -> tuple[str, ...]:
        """The seeds' instructions, each once, in order: what their first user turn asks.

        Raises UsageError where there are none.
        """
        self.whole = self.seeds.load(seed=config.seed, test_fraction=config.test_fraction)
        clean, contaminated = screen.seeds(self.whole)
        self.rejects = [*self.seeds.rejects, *contaminated]
        found = tuple(dict.fromkeys(text for seed in clean if (text := self._short(seed))))
        if not found:
            raise UsageError(
                f"there is no seed task to start from: {len(self.rejects)} rows of {self.seeds.named} were left out",
                hint="--prompts FILE with other tasks, or --set contaminated=keep",
            )
        return found

    def _short(self, seed: Seed) -> str:
        """The seed's instruction; empty, and noted, where it is longer than any task that is made."""
        asked = next(message.content for message in seed.row.prompt if message.role == "user")
        asked = self.shipped.get(asked, asked)
        words = word_count(asked)
        if words <= MOST_WORDS:
            return asked
        body = canonical(seed.row.model_dump(mode="json"))
        self.rejects.append(
            {"where": seed.where, "reason": "too_long", "detail": f"{words} words", "row": body}
        )
        return ""


def start_of(config: GenSftConfig, work: Work) -> Start:
    """The prompts asked for, else the sandbox's own for its teacher, else the seed tasks that ship with the package."""
    shipped = seed_tasks()
    examples = Examples(shipped)
    if config.prompts:
        source = open_mixture(
            work.store,
            config.prompts,
            "prompts",
            seed=config.seed,
            on_bad_row=config.on_bad_row,
            emit=work.emit,
        )
        return Start(from_source(source, None), examples, {})
    if parse_model(config.teacher).where == "sandbox":
        return Start(from_sandbox(SANDBOX_SEEDS, config.seed), examples, {})
    return Start(from_package(None), examples, {task.prompt: task.instruction for task in shipped})
