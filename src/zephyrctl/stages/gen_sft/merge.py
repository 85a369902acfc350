"""The parts of a sharded `gen-sft` made into what one process would have made.

Which instruction is a duplicate is decided in the order of the whole, and a part cannot know what the others ask.
So a part notes its chains in full, those cut short by a duplicate too, and the merge sieves all of them anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, any_partial, interleaved, merge_parts, parts_of
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import close_partial
from zephyrctl.asking.prompts import Seed
from zephyrctl.records import Message, PromptRow
from zephyrctl.stages.gen_sft.chains import Chain, Dialogue, Reject, Round, Sieve
from zephyrctl.stages.gen_sft.config import GenSftConfig


def as_entry(chain: Chain) -> dict[str, Any]:
    """A chain as a part notes it."""
    end = chain.end
    return {
        "where": chain.seed.where,
        "split": chain.seed.split,
        "seed": chain.seed.row.model_dump(mode="json"),
        "rounds": [{"asked": len(done.prompt), "said": _plain(done.said)} for done in chain.rounds],
        "end": end
        and {"round": end.round, "reason": end.reason, "detail": end.detail, "said": _plain(end.said)},
    }


def of_entry(entry: Mapping[str, Any]) -> Chain:
    """The chain that `as_entry` noted."""
    seed = Seed(entry["where"], entry["split"], PromptRow.model_validate(entry["seed"]), entry["position"])
    rounds = []
    for done in entry["rounds"]:
        said = _dialogue(done["said"])
        rounds.append(Round(said[: done["asked"]], [], list(said)))
    end = entry["end"]
    if end is None:
        return Chain(seed, rounds)
    return Chain(
        seed, rounds, Reject(seed, end["round"], end["reason"], end["detail"], _dialogue(end["said"]))
    )


def merge(
    artifacts: Sequence[Artifact], work: Work, *, out: str | None = None, note: str | None = None
) -> StepResult:
    """The version that an unsharded `gen-sft` would have made of the same prompts.

    Raises UsageError when parts are missing, there twice, or of different steps; IntegrityError.
    """
    parts, config = parts_of(artifacts, GenSftConfig)
    assert isinstance(config, GenSftConfig)
    rounds = config.rounds

    def fill(staging: Staging, parts: Sequence[Part]) -> None:
        first = parts[0]
        staging.write_rejects(islice(first.artifact.rejects(), first.bad_rows))
        sieve = Sieve(rounds, first.about)
        for _, entry in interleaved(parts):
            chain = of_entry(entry)
            staging.write_rows(chain.seed.split, sieve.rows(chain))
        staging.write_rejects(reject.as_row() for reject in sieve.rejects)
        staging.counts.update(sieve.counts(first.bad_rows))
        if any_partial(parts):
            of, finished = sieve.possible, sieve.possible - sieve.unfinished
            close_partial(staging, work.emit, finished=finished, of=of, kept=sieve.kept, unit="pairs")

    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)


def _plain(said: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.content] for m in said]


def _dialogue(said: Sequence[Sequence[str]]) -> Dialogue:
    return tuple(Message.model_validate({"role": role, "content": content}) for role, content in said)
