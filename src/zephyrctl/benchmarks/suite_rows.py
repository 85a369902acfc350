"""The rows of known evaluation suites: which suite a row tells of, and what its item asks (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
_ALPACA_EVAL = ("generator", "generator_1", "generator_2", "annotator", "dataset")
_TRUTHFUL_QA = ("mc1_targets", "mc2_targets", "correct_answers", "best_answer", "best answer")
_ASKS = ("turns", "messages", "prompt", "instruction", "question", "text")
_IDS = ("question_id", "id", "uid", "task_id", "ind", "key")
_USERS = ("user", "human", "prompter", "system")


@dataclass(frozen=True, slots=True)
class SuiteItem:
    """One item. `texts` is what is asked; `options` are the answers to choose from, where there are any."""

    id: str
    texts: tuple[str, ...]
    options: tuple[str, ...] = ()


def shape_of(row: Row) -> str:
    """The format that a row has: the name of a known suite, or `other`.

    Raises ValueError when no column of it is known to hold what an item asks.
    """
    for shape, fits in _SHAPES.items():
        if fits(row):
            return shape
    if any(name in row for name in _ASKS):
        return "other"
    found = ", ".join(sorted(map(str, row))[:12]) or "none at all"
    raise ValueError(f"no column of ({found}) holds what is asked; known are {', '.join(_ASKS)}")


def item_of(shape: str, row: Row, place: str) -> SuiteItem:
    """The item that a row of that format holds; `place` is its id where the row has none.

    Raises ValueError when the row asks nothing.
    """
    options: list[str] = []
    if shape == "hellaswag":
        texts, options = [_context(row)], _texts(row.get("endings"))
    elif shape == "arc":
        texts, options = _arc(row)
    elif shape == "mmlu":
        texts, options = _texts(row["question"]), _texts(row["choices"])
    elif shape == "truthfulqa":
        texts, options = _texts(row["question"]), _choices(row)
    else:
        texts = _asked(row)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError("the row asks nothing")
    return SuiteItem(
        _identity(row) or place, tuple(texts), tuple(option for option in options if option.strip())
    )


def _is_mt_bench(row: Row) -> bool:
    return "question_id" in row and row.get("category") in _MT_BENCH and len(_strings(row.get("turns"))) == 2


def _is_arc(row: Row) -> bool:
    question = row.get("question")
    nested = isinstance(question, Mapping) and "stem" in question
    # CommonsenseQA has the same columns and one more
    return "answerKey" in row and (nested or "choices" in row) and "question_concept" not in row


_SHAPES: dict[str, Callable[[Row], bool]] = {
    "mt-bench": _is_mt_bench,
    "alpaca-eval": lambda row: "instruction" in row and any(name in row for name in _ALPACA_EVAL),
    "hellaswag": lambda row: "endings" in row and ("ctx" in row or "ctx_a" in row),
    "truthfulqa": lambda row: "question" in row and any(name in row for name in _TRUTHFUL_QA),
    "arc": _is_arc,
    "mmlu": lambda row: "question" in row and "answer" in row and bool(_strings(row.get("choices"))),
}


def _strings(value: object) -> list[str]:
    """The value, where it is a list of nothing but texts."""
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def _texts(value: object) -> list[str]:
    """The texts in a value: itself, or those of a list; of messages, what user and system say."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return []
    found = []
    for part in value:
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, Mapping):
            role = str(part.get("role", part.get("from", "user"))).lower()
            text = part.get("content", part.get("value"))
            if role in _USERS and isinstance(text, str):
                found.append(text)
    return found


def _asked(row: Row) -> list[str]:
    for name in _ASKS:
        texts = _texts(row.get(name))
        further = row.get("input")
        if name == "instruction" and texts and isinstance(further, str) and further.strip():
            return [f"{texts[0]}\n\n{further}"]
        if texts:
            return texts
    return []


def _context(row: Row) -> str:
    whole = row.get("ctx")
    if isinstance(whole, str) and whole.strip():
        return whole
    return " ".join(text for name in ("ctx_a", "ctx_b") if isinstance(text := row.get(name), str))


def _arc(row: Row) -> tuple[list[str], list[str]]:
    question: Any = row.get("question")
    choices: Any = row.get("choices")
    if isinstance(question, Mapping):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, Mapping):
        return _texts(question), _texts(choices.get("text"))
    listed = choices if isinstance(choices, list) else []
    return _texts(question), [
        str(one["text"]) for one in listed if isinstance(one, Mapping) and "text" in one
    ]


def _choices(row: Row) -> list[str]:
    found: dict[str, None] = {}
    for name in ("mc1_targets", "mc2_targets"):
        targets = row.get(name)
        if isinstance(targets, Mapping):
            # the Hub's form has lists of choices and labels, the original one maps each choice to its label
            listed = targets.get("choices", list(targets))
            found.update(dict.fromkeys(_texts(listed)))
    return list(found)


def _identity(row: Row) -> str:
    for name in _IDS:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return ""
