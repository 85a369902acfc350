"""The words of the sandbox and what is true of them: kinds of things, plurals, opposites."""

from collections.abc import Mapping
from types import MappingProxyType


def _nouns(line: str) -> tuple[str, ...]:
    return tuple(line.split())


KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "animal": _nouns("cat dog fox cow hen pig owl lion"),
        "fruit": _nouns("fig pear plum lime peach apple melon kiwi"),
        "tool": _nouns("saw axe drill hammer rake brush pump clamp"),
        "garment": _nouns("hat sock shirt coat boot vest dress belt"),
        "vehicle": _nouns("car bus van truck boat ship train bike"),
        "furniture": _nouns("chair table desk bench lamp sofa bed stool"),
    }
)

KIND_OF: Mapping[str, str] = MappingProxyType({noun: kind for kind, nouns in KINDS.items() for noun in nouns})

NOUNS: tuple[str, ...] = tuple(KIND_OF)

_PAIRS = (
    "hot cold, big small, up down, wet dry, old new, fast slow, high low, open shut, full empty, soft hard, "
    "rich poor, long short, happy sad, loud quiet, clean dirty, strong weak"
)

OPPOSITE_OF: Mapping[str, str] = MappingProxyType(
    {
        one: other
        for pair in _PAIRS.split(", ")
        for one, other in (pair.split(), pair.split()[::-1])
    }
)  # fmt: skip


def plural_of(noun: str) -> str:
    """The regular plural: -es after a hissing end (s, x, z, ch, sh), else -s. All of `NOUNS` are regular."""
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")
