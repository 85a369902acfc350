"""The parts of a sharded `gen-sft` of the method `zephyr` made into what one process would have made.

Which instruction is new is decided in the order of the whole, and a part cannot know what the others ask. So a part
notes its chains in full, those cut short by another chain too, and the seeds it turned away; the merge decides anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from zephyrctl.artifacts.artifact import Artifact
from zephyrctl.artifacts.parts import Part, any_partial, interleaved, merge_parts
from zephyrctl.artifacts.step import StepResult, Work
from zephyrctl.artifacts.writer import Staging
from zephyrctl.asking.ending import close_partial
from zephyrctl.asking.prompts import Seed
from zephyrctl.records import Message, PromptRow
from zephyrctl.stages.gen_sft.chains import Chain, Dialogue, Reject, Round
from zephyrctl.stages.gen_sft.rounds import tell_rounds
from zephyrctl.stages.gen_sft.screen import parts_and_screen
from zephyrctl.stages.gen_sft.sieve import Sieve


def as_entry(chain: Chain) -> dict[str, Any]:
    """A chain as a part notes it."""
    end = chain.end
    return {
        **of_seed(chain.seed),
        "rounds": [{"asked": len(done.prompt), "said": _plain(done.said)} for done in chain.rounds],
        "end": end
        and {"round": end.round, "reason": end.reason, "detail": end.detail, "said": _plain(end.said)},
    }


def of_seed(seed: Seed) -> dict[str, Any]:
    """A seed as a part notes it that turned it away: without what became of it."""
    return {"where": seed.where, "split": seed.split, "seed": seed.row.model_dump(mode="json")}


def of_entry(entry: Mapping[str, Any]) -> Chain:
    """The chain that `as_entry` noted."""
    seed, rounds = _seed(entry), []
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

    Raises UsageError when parts are missing, there twice, of different steps, or made with another content of a
    suite or a filter's list; IntegrityError.
    """
    parts, config, screen = parts_and_screen(artifacts, work)

    def fill(staging: Staging, parts: Sequence[Part]) -> None:
        head = parts[0]
        sieve = Sieve(config.rounds, head.about, novelty=config.novelty, screen=screen)
        sieve.turn_away(screen.seeds([_seed(entry) for _, entry in interleaved(parts)])[1])
        staging.write_rejects(islice(head.artifact.rejects(), head.bad_rows))
        for _, entry in interleaved(parts):
            if "rounds" in entry:
                chain = of_entry(entry)
                staging.write_rows(chain.seed.split, sieve.rows(chain))
        staging.write_rejects(sieve.reject_rows())
        staging.counts.update(sieve.counts(head.bad_rows))
        partial = any_partial(parts)
        staging.extra["rounds"] = tell_rounds(work.emit, sieve.tallies, finished=not partial)
        screen.record(staging)
        if partial:
            of, finished = sieve.possible, sieve.possible - sieve.unfinished
            close_partial(staging, work.emit, finished=finished, of=of, kept=sieve.kept, unit="pairs")

    return merge_parts(work, parts, config.model_copy(update={"out": out, "note": note}), fill)


def _seed(entry: Mapping[str, Any]) -> Seed:
    return Seed(entry["where"], entry["split"], PromptRow.model_validate(entry["seed"]), entry["position"])


def _plain(said: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.content] for m in said]


def _dialogue(said: Sequence[Sequence[str]]) -> Dialogue:
    return tuple(Message.model_validate({"role": role, "content": content}) for role, content in said)
