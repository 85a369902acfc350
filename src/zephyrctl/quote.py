"""Quoted blocks: foreign text inside a prompt, fenced so that it cannot pass for our own words.

A block looks like this, with a key that depends on the quoted text and therefore cannot be written into it
in advance:

    <<<USER 1 9f2c6a1b>>>
    Sort these words: pear fig
    <<<END USER 1 9f2c6a1b>>>
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

_BLOCK = re.compile(
    r"^<<<(?P<name>[A-Z][A-Z0-9 ]*) (?P<key>[0-9a-f]{8})>>>\n(?P<text>.*?)\n<<<END (?P=name) (?P=key)>>>$",
    re.DOTALL | re.MULTILINE,
)


def fence_key(texts: Sequence[str]) -> str:
    """Eight hex digits that occur in none of `texts`, derived from them alone (equal texts, equal key)."""
    digest = hashlib.sha256("\x1f".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    while any(digest[:8] in text for text in texts):
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return digest[:8]


def quote_blocks(blocks: Mapping[str, str]) -> str:
    """The blocks one below the other, all under one key. Names are upper case words and digits (`USER 1`,
    `TEXT 3`)."""
    key = fence_key(list(blocks.values()))
    return "\n\n".join(f"<<<{name} {key}>>>\n{text}\n<<<END {name} {key}>>>" for name, text in blocks.items())


def read_blocks(prompt: str) -> dict[str, str]:
    """The quoted blocks of a prompt by name, in the order written; the inverse of `quote_blocks`."""
    return split_blocks(prompt)[0]


def split_blocks(prompt: str) -> tuple[dict[str, str], str]:
    """The quoted blocks of a prompt by name, and the prompt without them.

    Only blocks under the key of the first block count, so a block smuggled in by a quoted text stays text.
    """
    first = _BLOCK.search(prompt)
    if first is None:
        return {}, prompt
    blocks: dict[str, str] = {}
    frame, end = "", 0
    for match in _BLOCK.finditer(prompt):
        if match["key"] == first["key"]:
            blocks[match["name"]] = match["text"]
            frame += prompt[end : match.start()]
            end = match.end()
    return blocks, frame + prompt[end:]
