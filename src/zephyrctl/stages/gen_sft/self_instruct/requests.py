"""What the teacher is asked: for new tasks after the model of others, for the kind of a task, for its instances.

Self-Instruct (section 2.2 and appendix A) shows examples of each: tasks to continue a list of tasks, judged tasks to
judge one more, finished instances to write one more. Examples of the last two come from the seed tasks that ship with
the package, whatever the tasks themselves grow from.
"""

from __future__ import annotations

from collections.abc import Sequence

from zephyrctl.asking.seeds import SeedTask
from zephyrctl.config import digest_of
from zephyrctl.judges.templates import digest, render, source
from zephyrctl.quote import quote_blocks

WANTED = 8
"""New tasks that one request asks for; the original lets a list of 8 go on to 15."""
KIND_EXAMPLES = 8
INSTANCE_EXAMPLES = 3
_LONGEST_EXAMPLE = 800
_PACKAGE = "zephyrctl.stages.gen_sft.self_instruct"
_FILES = ("tasks.md", "kind.md", "output_first.md", "input_first.md", "cannot.txt")

NONE = "none"
"""What stands in place of the input of a task that needs none."""


def template_digests() -> dict[str, str]:
    """The hashes of the prompt files and of the list of words, for manifest and step key."""
    return {f"gen-sft/self-instruct/{name}": digest(_PACKAGE, f"prompts/{name}") for name in _FILES}


def forbidden() -> tuple[str, ...]:
    """Words about things that a model of text cannot do."""
    return tuple(line for line in source(_PACKAGE, "prompts/cannot.txt").splitlines() if line)


def tasks_request(shown: Sequence[str]) -> str:
    """The request for `WANTED` tasks more than those shown, which are numbered from 1."""
    demos = "\n".join(f"{number}. {' '.join(task.split())}" for number, task in enumerate(shown, 1))
    first = len(shown) + 1
    return render(
        _PACKAGE,
        "prompts/tasks.md",
        demos=demos,
        shown=str(len(shown)),
        wanted=str(WANTED),
        first=str(first),
        last=str(first + WANTED - 1),
    )


class Examples:
    """The seed tasks that are shown as examples of kinds and instances; `digest` stands for them in a step key."""

    def __init__(self, tasks: Sequence[SeedTask]) -> None:
        short = [t for t in tasks if not t.follow_ups and len(t.prompt) + len(t.output) <= _LONGEST_EXAMPLE]
        classes = [task for task in short if task.is_classification]
        others = [task for task in short if not task.is_classification]
        half = KIND_EXAMPLES // 2
        pairs = zip(classes[:half], others[:half], strict=False)
        self._kinds = [task for pair in pairs for task in pair]
        self._classes = classes[:INSTANCE_EXAMPLES]
        with_input = [task for task in others if task.input]
        without = [task for task in others if not task.input]
        self._others = [*with_input[: INSTANCE_EXAMPLES - 1], *without[:1]]
        shown = [*self._kinds, *self._classes, *self._others]
        self.digest = digest_of(
            [[t.instruction, t.input, t.output, t.is_classification] for t in shown],
        )

    def kind_request(self, instruction: str) -> str:
        """The request that asks whether a task is a classification task."""
        blocks = {}
        for number, task in enumerate(self._kinds, 1):
            blocks[f"TASK {number}"] = task.instruction
            blocks[f"REPLY {number}"] = "yes" if task.is_classification else "no"
        blocks[f"TASK {len(self._kinds) + 1}"] = instruction
        return render(_PACKAGE, "prompts/kind.md", blocks=quote_blocks(blocks))

    def instances_request(self, instruction: str, count: int, *, classification: bool) -> str:
        """The request for `count` instances of a task: label first for classification, else input first."""
        shown = self._classes if classification else self._others
        blocks = {}
        for number, task in enumerate(shown, 1):
            blocks[f"TASK {number}"] = task.instruction
            blocks[f"REPLY {number}"] = _as_reply(task, classification=classification)
        blocks[f"TASK {len(shown) + 1}"] = instruction
        name = "output_first" if classification else "input_first"
        another = "label, as far as there are enough labels" if classification else "input"
        many = f"Write {count} examples for the last task, one below the other, each with another {another}."
        wanted = "Write one example for the last task." if count == 1 else many
        return render(_PACKAGE, f"prompts/{name}.md", blocks=quote_blocks(blocks), wanted=wanted)


def _as_reply(task: SeedTask, *, classification: bool) -> str:
    given = task.input or NONE
    if classification:
        return f"[[LABEL]]\n{task.output}\n[[INPUT]]\n{given}\n[[END]]"
    return f"[[INPUT]]\n{given}\n[[OUTPUT]]\n{task.output}\n[[END]]"
