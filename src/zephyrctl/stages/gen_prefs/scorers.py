"""Raters that are no language model: a reward model on this machine, or a function of the user's.

Both give one number to each completion (`overall`), on a scale of their own: only its order means something.
"""

from __future__ import annotations

import abc
import inspect
import math
import threading
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from zephyrctl.artifacts.manifest import InputRef
from zephyrctl.errors import StageRejected, UsageError
from zephyrctl.events import Note
from zephyrctl.judges.base import Parsed
from zephyrctl.plugins import Loaded, load_function, stdout_aside
from zephyrctl.records import Completion, Message
from zephyrctl.stages.gen_prefs.answered import Answered, AskAll
from zephyrctl.stages.gen_prefs.tally import Tally

if TYPE_CHECKING:
    from zephyrctl.artifacts.models import ModelSource
    from zephyrctl.artifacts.step import Work
    from zephyrctl.asking.estimate import Range
    from zephyrctl.asking.seats import World
    from zephyrctl.asking.sketch import Sketch
    from zephyrctl.providers.base import AnyProvider
    from zephyrctl.stages.gen_prefs.rating import Rater
    from zephyrctl.stages.gen_prefs.reward_model import RewardModel

_REWARD_MODEL = "rm:"


def open_scorer(text: str, work: Work) -> Rater:
    """The rater that `text` names: `rm:MODEL`, `./file.py:function`, or a plug-in's name.

    Raises UsageError for a name that cannot be read or a model that gives no single score;
    RefNotFound, IntegrityError, and MissingExtra without torch.
    """
    if not text.startswith(_REWARD_MODEL):
        return VerifierRater(load_function(text))
    from zephyrctl.stages.gen_prefs.reward_model import check_reward_model, has_template
    from zephyrctl.training.locate import locate_model

    name = text.removeprefix(_REWARD_MODEL)
    model = locate_model(work.store, name)
    check_reward_model(model.path)
    if not has_template(model.path):
        work.emit(
            Note(
                f"{text} has no chat template: it is given prompt and answer as its tokenizer's pair of texts"
            )
        )
    return RewardRater(name, model)


class _Scorer(abc.ABC):
    """What the raters that compute here have in common: nothing is asked, so nothing is sketched or paid."""

    label: str
    world: World

    def providers(self) -> list[AnyProvider]:
        """Nobody."""
        return []

    def draw(self, sketch: Sketch, prompts: int, asked: Range, texts: Range, pool: int) -> None:  # noqa: B027
        """Adds no calls: there are none, whatever the scorer."""

    def rate(self, answered: Sequence[Answered], ask: AskAll, tally: Tally) -> list[list[Completion] | None]:
        """The completions with their score in `overall`; None there = not scored, counted with its reason."""
        made: list[list[Completion] | None] = []
        for one in answered:
            scores = self.scores(one)
            for score in scores:
                tally.count(score)
            made.append(
                [c.model_copy(update={"overall": s.value}) for c, s in zip(one.kept, scores, strict=True)]
            )
        return made

    @abc.abstractmethod
    def scores(self, answered: Answered) -> list[Parsed]:
        """One score for each completion of a prompt."""


class RewardRater(_Scorer):
    """A sequence classifier with one output: its raw value for the dialogue is the score.

    The completions of one prompt are a batch of their own, so a score does not depend on what else is rated. A
    dialogue longer than the model's context is not cut: its score is missing, with the reason `too long`.
    """

    def __init__(self, name: str, source: ModelSource) -> None:
        self.label = f"{_REWARD_MODEL}{name}"
        self.world = source.world
        self._source = source
        self._model: RewardModel | None = None
        self._lock = threading.Lock()

    def inputs(self) -> list[InputRef]:
        """The model's files."""
        return [InputRef(role="scorer", ref=self._source.ref, digest=self._source.digest, kind="model")]

    def templates(self) -> dict[str, str]:
        """None of ours: the chat template is a file of the model."""
        return {}

    def scores(self, answered: Answered) -> list[Parsed]:
        """The model's value for each completion. Raises EnvironmentFault where it cannot be loaded."""
        from zephyrctl.stages.gen_prefs.reward_model import load_reward_model

        with self._lock:
            if self._model is None:
                self._model = load_reward_model(self._source.path)
            values = self._model.score(answered.item.row.prompt, [c.text for c in answered.kept])
        return [v if isinstance(v, Parsed) else read_score(v) for v in values]

    def close(self) -> None:
        """Frees the model's memory."""
        with self._lock:
            self._model = None


class VerifierRater(_Scorer):
    """A function `fn(prompt, completion)` of the user's: `prompt` is a list of `{"role", "content"}`, the result a
    number, or None where it has nothing to say. It is called by one thread at a time."""

    world: World = "real"

    def __init__(self, loaded: Loaded) -> None:
        try:
            inspect.signature(loaded.function).bind([], "")
        except TypeError as error:
            raise UsageError(f"{loaded.label} cannot be called as fn(prompt, completion): {error}") from None
        except ValueError:  # a builtin without a signature
            pass
        self.label = loaded.label
        self._loaded = loaded
        self._lock = threading.Lock()

    def inputs(self) -> list[InputRef]:
        """The file of the function."""
        return [InputRef(role="scorer", ref=self.label, digest=self._loaded.digest, kind="function")]

    def templates(self) -> dict[str, str]:
        """None."""
        return {}

    def scores(self, answered: Answered) -> list[Parsed]:
        """What the function says of each completion. Raises StageRejected for an exception in it, naming the place
        and the prompt."""
        with self._lock:
            return [
                self._score(answered.item.row.prompt, answered.item.row.prompt_id, c.text)
                for c in answered.kept
            ]

    def _score(self, prompt: Sequence[Message], prompt_id: str, text: str) -> Parsed:
        turns = [{"role": m.role, "content": m.content} for m in prompt]
        try:
            with stdout_aside():
                found = self._loaded.function(turns, text)
            return read_score(found)
        except (Exception, SystemExit) as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise StageRejected(
                f"{self._loaded.place_of(error)}: {type(error).__name__}: {said} (scoring prompt {prompt_id[:12]})",
                hint="let the function return None for what it cannot score; completions that were paid for are kept",
            ) from None

    def close(self) -> None:
        """Nothing is held."""


def read_score(value: Any) -> Parsed:
    """A finite number (or a truth value, as 1 or 0) as a score; anything else is missing, with the reason."""
    if value is None:
        return Parsed(reason="not scored")
    if not isinstance(value, Real):
        return Parsed(reason=f"not a number: {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # a whole number too large for a float
        number = math.inf
    return Parsed(number) if math.isfinite(number) else Parsed(reason=f"not finite: {number}")
