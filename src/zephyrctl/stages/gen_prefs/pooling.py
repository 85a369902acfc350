"""Who answers: the members of the pool, who of them answers which prompt, and the pool where none is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from zephyrctl.asking.line_up import key_variables, line_up, with_keys
from zephyrctl.asking.seats import Seat, take_seat
from zephyrctl.errors import AuthError, UsageError
from zephyrctl.records import row_seed

if TYPE_CHECKING:
    from zephyrctl.artifacts.artifact import Artifact
    from zephyrctl.artifacts.store import Store
    from zephyrctl.modelspec import ModelSpec
    from zephyrctl.providers.site import Site

SANDBOX_POOL = ("sandbox:pool-a", "sandbox:pool-b", "sandbox:pool-c", "sandbox:pool-d")
OWN = ("dpo-", "sft-")
"""What the names of checkpoints made by the training stages begin with."""


@dataclass(frozen=True)
class Member:
    """One place in the pool. `copy` counts the places before it that hold the same model with the same settings: their
    answers are further draws."""

    seat: Seat
    label: str
    copy: int = 0

    def draws(self, n: int) -> range:
        """The numbers of its `n` draws."""
        return range(self.copy * n, (self.copy + 1) * n)


def members_of(seats: Sequence[Seat]) -> list[Member]:
    """The members in the order of the pool, each with a label of its own settings."""
    seen: Counter[str] = Counter()
    members = []
    for seat in seats:
        label = label_of(seat)
        members.append(Member(seat, label, seen[label]))
        seen[label] += 1
    return members


def label_of(seat: Seat) -> str:
    """What rows call a member: the model, with the sampling settings given with its name, if any.

    `gpt-x?temperature=0.2` and `gpt-x` are two authors. The settings are sorted by name.
    """
    given = sorted(seat.spec.params.items())
    settings = "&".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in given
    )
    return f"{seat.label}?{settings}" if settings else seat.label


def chosen(members: Sequence[Member], wanted: int, seed: int, prompt_id: str) -> list[Member]:
    """The members that answer a prompt, in the order of the pool: `wanted` of them, drawn without replacement.

    Each member has a number drawn by hash of seed, prompt and its own label, and the lowest win: so the order of the
    pool plays no part, and who is left out of the pool changes the draw only where it was drawn.
    """
    if len(members) <= wanted:
        return list(members)
    drawn = sorted(
        range(len(members)),
        key=lambda i: (row_seed(seed, prompt_id, "member", members[i].label, members[i].copy), i),
    )
    return [members[i] for i in sorted(drawn[:wanted])]


def take_seats(store: Store, specs: Sequence[ModelSpec], site: Site) -> list[Seat]:
    """The models ready to be asked; places of one model share what it holds in memory. Raises as `take_seat`."""
    taken: dict[tuple[str, str | None, str], Seat] = {}
    seats = []
    for spec in specs:
        model = (spec.where, spec.endpoint, spec.name)
        if model not in taken:
            taken[model] = take_seat(store, spec, site)
        seats.append(replace(taken[model], spec=spec))
    return seats


def default_pool(
    store: Store, site: Site, *, judge: ModelSpec | None, world: str, size: int
) -> tuple[list[str], str]:
    """The pool where none is named, as model names, and a sentence on how it came about.

    In the sandbox's world its own four. Elsewhere, `size` models in all:

    1. the newest checkpoint of the store's own making (`dpo-*` or `sft-*`, of that world), where there is one: what
       is trained next learns most from its own mistakes. Without anything to run it with it is left out, and that is
       said;
    2. for the other places, models of the dated line-up from the vendors whose keys are set. The places go down in
       strength in equal steps from the strongest to the weakest, and the vendors take them in turn;
    3. the judge is left out as long as enough others are there, since judges favour their own words.

    No model is taken twice. Raises AuthError where no key is set, UsageError where fewer than two models are found.
    """
    if world == "sandbox":
        return list(SANDBOX_POOL), "the sandbox's own pool of four"
    vendors = with_keys(site)
    if not vendors:
        variables = " or ".join(key_variables())
        raise AuthError(
            f"no pool was named, and there is no key of a vendor to take one from: {variables} is not set",
            hint=f"export {variables.replace(' or ', '=… or ')}=…; or name the models that answer: --pool MODEL --pool "
            "MODEL …",
        )
    newest = newest_checkpoint(store, world)
    own = newest if newest is not None and _runs_models(site) else None
    named = _spread(vendors, judge, size - (own is not None))
    pool = [*named, *([] if own is None else [str(own.ref)])]
    if len(pool) < 2:
        raise UsageError(
            f"{_and(vendors)} alone gives a pool of {len(pool)}, which leaves nothing to compare",
            hint="--pool MODEL, at least twice",
        )
    told = f"of the line-up of {line_up().date}, from {_and(vendors)}, whose keys are set"
    if own is not None:
        told += f", and {own.ref}, the newest checkpoint here"
    elif newest is not None:
        told += f", without {newest.ref}, which needs pip install 'zephyrctl[train]' to answer"
    if len(pool) < size:
        told += f"; only {len(pool)} different models, not {size}"
    return pool, f"{told} (--pool names others)"


def _runs_models(site: Site) -> bool:
    """Whether a model on this machine can be asked: with torch, or with a vLLM that the project names."""
    return site.project.vllm is not None or find_spec("torch") is not None


def newest_checkpoint(store: Store, world: str) -> Artifact | None:
    """The model that `sft` or `dpo` made last in that world, by the time in its manifest; None where there is none."""
    found = [
        model
        for name in store.names()
        if name.startswith(OWN) and (model := store.newest(name, world=world, kind="model")) is not None
    ]
    return max(found, key=lambda m: (str(m.manifest.provenance.get("created", "")), str(m.ref)), default=None)


def _spread(vendors: Sequence[str], judge: ModelSpec | None, places: int) -> list[str]:
    table = {vendor: list(line_up().vendors[vendor]) for vendor in vendors}
    others = {
        vendor: [name for name in names if not _is(judge, vendor, name)] for vendor, names in table.items()
    }
    if sum(map(len, others.values())) >= places:
        table = others
    free = {vendor: list(names) for vendor, names in table.items()}
    pool: list[str] = []
    for place in range(places):
        turn = [vendors[(place + k) % len(vendors)] for k in range(len(vendors))]
        vendor = next((v for v in turn if free[v]), None)
        if vendor is None:
            break
        ranks = table[vendor]
        aim = place * (len(ranks) - 1) / max(1, places - 1)
        name = min(free[vendor], key=lambda one: (abs(ranks.index(one) - aim), ranks.index(one)))
        free[vendor].remove(name)
        pool.append(name)
    return pool


def _is(judge: ModelSpec | None, vendor: str, name: str) -> bool:
    """Whether the judge is that model, or a dated version of it."""
    if judge is None or judge.where != vendor:
        return False
    return judge.name == name or judge.name.startswith(f"{name}-20")


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
