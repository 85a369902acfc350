"""Which words of a text are prose: code, formulas, addresses and identifiers are found and left alone."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence

Span = tuple[int, int]

_BLOCKS = (
    ("```", re.compile(r"```.*?(?:```|\Z)", re.DOTALL)),  # an unclosed fence too
    ("~~~", re.compile(r"~~~.*?(?:~~~|\Z)", re.DOTALL)),
    ("`", re.compile(r"`[^`\n]+`")),
    ("$", re.compile(r"\$[^$\n]{1,200}\$")),
    ("<", re.compile(r"</?[A-Za-z!][^<>\n]{0,300}>")),
)
_FORMULAS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"))
_CHUNK = re.compile(r"\S+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_PLAIN = re.compile(r"[^\w\s\\/@#<>=(){}-]*[^\W\d_]+(?:['’-]+[^\W\d_]+)*[^\w\s\\/@#<>=({}]*")
_FOREIGN = re.compile(r"[\\@#_=<>{}\d]|\(\)|://|^www\.|\w[.,;]\w|^-{1,2}\w|\w/\S*/|\w\(\w*$")
"""Marks of what is no prose, within one piece between blanks: addresses, paths, options, calls, words with digits."""
_CODE_START = re.compile(
    r"\s*(?:def |class |import |from \w+ import|return\b|for \w+ in |while ?\(|if ?\(|else ?[:{]|elif |try:|except"
    r"|#include|using namespace|public |private |static |void |int |float |char |const |let |var |function |console\."
    r"|print ?\(|SELECT |INSERT |UPDATE |DELETE |CREATE |\$ |>>>|//|/\*|\*/|<\?|\}|\{|@\w+|package |func |fn |end\b)"
)
_PROMPT = re.compile(
    r"\s*(?:\w[\w.-]*@[^\s$#%]+[$#%]|\([\w.-]+\) ?\$|(?:root|bash-[\d.]+)[$#]|\$|~\S*[$#%]|PS [A-Z]:\S*>"
    r"|[A-Z]:\\\S*>|>>>|In \[\d+\]:) +[^\s\d]"
)
_LISTING = re.compile(
    r"\s*(?:Traceback \(most recent|(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER) \S)"
)
"""With a prompt: how text begins that is code up to the next blank line."""
_PLAIN_CODE = re.compile(
    r"\s*(?:import [\w.]+(?: as \w+)?;?\s*\Z|from [\w.]+ import \S"
    r"|(?:FROM|WHERE|GROUP BY|ORDER BY|LIMIT|VALUES|JOIN) \S"
    r"|(?:sudo|apt|apt-get|brew|npm|npx|yarn|pip3?|conda|git|docker|kubectl|curl|wget|mkdir|chmod|chown|ssh|rm|cp|mv)"
    r" (?!is\b|was\b|are\b|has\b|can\b|will\b|and\b|or\b)[^.!?]*(?:\S\.\S[^.!?]*)*\Z"
    r"|\"[^\"\n]*\"\s*:|[A-Za-z_][\w.-]*\s*[:+-]?=\s|\[[\w.-]+\]\s*\Z|at [\w.$<>]+ ?\(|\S[^\n]*\t\S)"
)
"""How a line of code begins that may have no symbols in it at all: commands, settings, cells of a table."""
_KEYED = re.compile(r"\s*(?:- )?[a-z_][\w./-]*:(?:\s|\Z)")
"""A line of YAML, or of prose: two of them together are no prose."""
_ITEM = re.compile(r"\s*(?:[-*•–+]|\(?\w{1,3}[.)])\s")
_INDENTED = re.compile(r" {4,}\S|[ ]*\t\s*\S")
_CODE_END = re.compile(r"(?:[;{}]|\):|=>|\\)\s*\Z")
_SYMBOLS = re.compile(r"[=<>{}\[\]()|&^%$;\\/+*_~@#]")


def is_code_line(line: str) -> bool:
    """Whether a line without a fence looks like code: by how it begins or ends, or how many symbols it has."""
    if _PROMPT.match(line) or _LISTING.match(line) or _PLAIN_CODE.match(line):
        return True
    symbols = len(_SYMBOLS.findall(line))
    if not symbols:
        return False
    stripped = line.strip()
    if _CODE_END.search(stripped):
        return True
    if _CODE_START.match(line) and (symbols >= 2 or stripped[0] in "}{@$>/*#"):
        return True
    return symbols >= 4 and symbols / len(stripped) > 0.12


def code_lines(lines: Sequence[str]) -> list[bool]:
    """Which lines without a fence are code, by themselves or by the lines around them: what is printed below a prompt,
    what is indented below a line of code or by four blanks outside a list, and settings that stand together."""
    keyed = [_KEYED.match(line) is not None for line in lines]
    found: list[bool] = []
    until_blank = in_list = False
    for number, line in enumerate(lines):
        if not line.strip():
            until_blank = False
            found.append(False)
            continue
        indented = line[0] in " \t"
        if not indented:
            in_list = _ITEM.match(line) is not None
        until_blank = until_blank or bool(_PROMPT.match(line) or _LISTING.match(line))
        below = indented and number > 0 and found[number - 1]
        apart = _INDENTED.match(line) is not None and not in_list and not _ITEM.match(line)
        together = keyed[number] and any(keyed[max(0, number - 1) : number] + keyed[number + 1 : number + 2])
        found.append(until_blank or below or apart or together or is_code_line(line))
    return found


def prose_words(text: str) -> Iterator[list[Span]]:
    """The places of the words of prose, line by line; lines without any are left out."""
    blocks = _blocked(text)
    at = 0
    lines = text.splitlines(keepends=True)
    for line, code in zip(lines, code_lines(lines), strict=True):
        stop = at + len(line)
        if not code:
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
    found = [hit.span() for mark, block in _BLOCKS if mark in text for hit in block.finditer(text)]
    found = sorted([*found, *(span for pair in _FORMULAS for span in _between(text, *pair))])
    joined: list[Span] = []
    for start, end in found:
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _between(text: str, opening: str, closing: str) -> Iterator[Span]:
    """Stretches from an opening mark to the next closing one; a mark that nothing closes is none."""
    at = text.find(opening)
    while at >= 0:
        end = text.find(closing, at + len(opening))
        if end < 0:
            return
        yield at, end + len(closing)
        at = text.find(opening, end + len(closing))


def _inside(word: Span, blocks: list[Span]) -> bool:
    """Whether a word overlaps with one of the blocks, which are in order and apart."""
    before = bisect.bisect_left(blocks, (word[1], 0)) - 1
    return before >= 0 and blocks[before][1] > word[0]
