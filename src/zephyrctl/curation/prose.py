"""Which words of a text are prose: code, formulas, addresses and identifiers are found and left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

_BLOCKS = (
    ("```", re.compile(r"```.*?(?:```|\Z)", re.DOTALL)),  # an unclosed fence too
    ("~~~", re.compile(r"~~~.*?(?:~~~|\Z)", re.DOTALL)),
    ("`", re.compile(r"`[^`\n]+`")),
    ("$", re.compile(r"\$\$.*?\$\$|\$[^$\n]{1,200}\$", re.DOTALL)),
    ("\\", re.compile(r"\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)),
    ("<", re.compile(r"</?[A-Za-z!][^<>\n]{0,300}>")),
)
_CHUNK = re.compile(r"\S+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PLAIN = re.compile(r"[^\w\s\\/@#<>=(){}-]*[^\W\d_]+(?:['’-]+[^\W\d_]+)*[^\w\s\\/@#<>=({}]*")
_FOREIGN = re.compile(r"[\\@#_=<>{}\d]|\(\)|://|^www\.|\w\.\w|^-{1,2}\w|\w/\S*/|\w\(\w*$")
"""Marks of what is no prose, within one piece between blanks: addresses, paths, options, calls, words with digits."""
_CODE_START = re.compile(
    r"\s*(?:def |class |import |from \w+ import|return\b|for \w+ in |while ?\(|if ?\(|else ?[:{]|elif |try:|except"
    r"|#include|using namespace|public |private |static |void |int |float |char |const |let |var |function |console\."
    r"|print ?\(|SELECT |INSERT |UPDATE |DELETE |CREATE |\$ |>>>|//|/\*|\*/|<\?|\}|\{|@\w+|package |func |fn |end\b)"
)
_CODE_END = re.compile(r"(?:[;{}]|\):|=>|\\)\s*\Z")
_SYMBOLS = re.compile(r"[=<>{}\[\]()|&^%$;\\/+*_~@#]")


def is_code_line(line: str) -> bool:
    """Whether a line without a fence looks like code: by how it begins or ends, or how many symbols it has."""
    symbols = len(_SYMBOLS.findall(line))
    if not symbols:
        return False
    stripped = line.strip()
    if _CODE_END.search(stripped):
        return True
    if _CODE_START.match(line) and (symbols >= 2 or stripped[0] in "}{@$>/*#"):
        return True
    return symbols >= 4 and symbols / len(stripped) > 0.12


def prose_words(text: str) -> Iterator[list[Span]]:
    """The places of the words of prose, line by line; lines without any are left out."""
    blocks = _blocked(text)
    at = 0
    for line in text.splitlines(keepends=True):
        stop = at + len(line)
        if not is_code_line(line):
            words = list(_words(text, at, stop))
            if blocks:
                words = [word for word in words if not _inside(word, blocks)]
            if words:
                yield words
        at = stop


def _words(text: str, start: int, stop: int) -> Iterator[Span]:
    for chunk in _CHUNK.finditer(text, start, stop):
        piece = chunk[0]
        if _PLAIN.fullmatch(piece) or not _FOREIGN.search(piece):
            for word in _WORD.finditer(text, chunk.start(), chunk.end()):
                yield word.span()


def _blocked(text: str) -> list[Span]:
    """Where code, formulas and tags stand, in order, overlapping ones joined."""
    found = sorted(hit.span() for mark, block in _BLOCKS if mark in text for hit in block.finditer(text))
    joined: list[Span] = []
    for start, end in found:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _inside(word: Span, blocks: list[Span]) -> bool:
    return any(start < word[1] and word[0] < end for start, end in blocks)
