"""What the teacher's replies say: a list of tasks, a kind, instances. And which of it cannot be used, and why. Pure.

The rules for tasks and instances are those of Self-Instruct's code (`bootstrap_instructions.py`,
`prepare_for_finetuning.py`) and Alpaca's longer list of words, with these differences:

* Letters keep their case; the original lower-cased all but the first.
* Tasks in every script are taken; the original dropped whatever does not begin with an ASCII character. In scripts that
  are written without spaces, two characters count as a word.
* Of a reply that was cut off only the last, unfinished task is lost; the original lost the whole reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from zephyrctl.stages.gen_sft.self_instruct.requests import NONE, forbidden

Kind = Literal["classification", "other", "unclear"]

FEWEST_WORDS, MOST_WORDS = 4, 150
_NUMBERED = re.compile(r"^[ \t]*(?:#+[ \t]+)?(?:\*\*)?(\d{1,4})[.)](?:\*\*)?[ \t]+", re.MULTILINE)
_NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_PROGRAM = re.compile(r"(?:write|create|make) an? (?:\w+ )?program\b", re.IGNORECASE)
_MARK = re.compile(r"^[ \t]*(?:\*\*)?\[\[(LABEL|INPUT|OUTPUT|END)\]\](?:\*\*)?", re.MULTILINE)
_YES_NO = re.compile(r"\W*(yes|no)\W*(?:[,.:;!\n–—].*)?", re.IGNORECASE | re.DOTALL)
_OPENERS = "¿¡"


def split_tasks(text: str) -> list[str]:
    """The items of a numbered list, white space made single; what stands before the first number is none.

    A number begins an item only if it is the one that follows, so lists inside an item stay part of it.
    """
    starts: list[re.Match[str]] = []
    for found in _NUMBERED.finditer(text):
        if not starts or int(found[1]) == int(starts[-1][1]) + 1:
            starts.append(found)
    ends = [found.start() for found in starts[1:]] + [len(text)]
    items = (" ".join(text[found.end() : end].split()) for found, end in zip(starts, ends, strict=False))
    return [item for item in items if item]


def unusable(task: str) -> tuple[str, str] | None:
    """Why a task cannot be used, as (reason, detail); None where it can."""
    words = word_count(task)
    if words < FEWEST_WORDS:
        return "too_short", f"{words} words"
    if words > MOST_WORDS:
        return "too_long", f"{words} words"
    found = _forbidden_words().search(task)
    if found:
        return "not_for_text", f"the word '{found[0]}'"
    if _PROGRAM.match(task):
        return "program", "asks for a program"
    if not (task[0].isalnum() or task[0] in _OPENERS):
        return "opening", f"begins with {task[0]!r}"
    return None


def word_count(text: str) -> int:
    """Words of a text; two characters of a script without spaces are one."""
    dense = len(_NO_SPACES.findall(text))
    return len(_NO_SPACES.sub(" ", text).split()) + (dense + 1) // 2


@cache
def _forbidden_words() -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, forbidden())) + r")\b", re.IGNORECASE)


def read_kind(text: str) -> Kind:
    """What a reply of yes or no says, whatever is added after a stop or a comma; anything else is unclear."""
    found = _YES_NO.fullmatch(text)
    if found is None:
        return "unclear"
    return "classification" if found[1].lower() == "yes" else "other"


@dataclass(frozen=True)
class Instance:
    """One example of a task: an input (empty where the task needs none), the output; or why it is none."""

    given: str
    output: str
    reason: str = ""
    detail: str = ""


def read_instances(text: str, *, classification: bool, cut: bool, most: int) -> list[Instance]:
    """The instances of one task that a reply holds, in its order; those that cannot be used say why.

    `cut` = the reply ended at the limit of tokens, so an instance without its end mark is not whole. Of instances that
    give one input two outputs, none can be used, nor any other of the task: whoever wrote them does not know it.
    """
    order = ("LABEL", "INPUT") if classification else ("INPUT", "OUTPUT")
    groups = _groups(text, order[0])
    found = [_instance(group, order, cut=cut and group is groups[-1]) for group in groups]
    outputs: dict[str, set[str]] = {}
    for one in found:
        if not one.reason:
            outputs.setdefault(one.given, set()).add(one.output)
    if any(len(several) > 1 for several in outputs.values()):
        detail = "the task has one input with two outputs"
        return [one if one.reason else _without(one, "conflict", detail) for one in found]
    return _first_few(found, most)


def _groups(text: str, opening: str) -> list[list[tuple[str, str]]]:
    """Marks with the text below them, a group for each opening mark; `END` ends a group, text after it is no part."""
    marks = list(_MARK.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    groups: list[list[tuple[str, str]]] = []
    for mark, end in zip(marks, ends, strict=False):
        name, body = mark[1], text[mark.end() : end].strip()
        if name == opening or not groups:
            groups.append([])
        groups[-1].append((name, body))
    return groups


def _instance(group: Sequence[tuple[str, str]], order: tuple[str, str], *, cut: bool) -> Instance:
    names = tuple(name for name, _ in group)
    said = dict(group)
    first, second = said.get(order[0], ""), said.get(order[1], "")
    given, output = (second, first) if order[0] == "LABEL" else (first, second)
    given = "" if given.casefold().strip("()<>. ") in (NONE, "n/a") else given
    instance = Instance(given, output)
    if cut and "END" not in names:
        return _without(instance, "cut_off", "the reply ends within it")
    if names not in (order, (*order, "END")):
        return _without(instance, "unreadable", "marks: " + " ".join(names))
    if not output:
        return _without(instance, "no_output", "the output is empty")
    if given == output:
        return _without(instance, "echo", "input and output are the same")
    if given.endswith(":") or output.endswith(":"):
        return _without(instance, "colon", "ends with a colon, so something is missing")
    return instance


def _first_few(found: Sequence[Instance], most: int) -> list[Instance]:
    seen: set[Instance] = set()
    few = []
    for one in found:
        if not one.reason and one in seen:
            one = _without(one, "duplicate", "an earlier instance is the same")
        elif not one.reason and len(seen) == most:
            one = _without(one, "surplus", f"{most} wanted")
        elif not one.reason:
            seen.add(one)
        few.append(one)
    return few


def _without(one: Instance, reason: str, detail: str) -> Instance:
    return Instance(one.given, one.output, reason, detail)
