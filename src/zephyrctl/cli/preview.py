"""A previewed row in a terminal: what bears loss stands out, what was cut is struck through, no token is invisible."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from zephyrctl.cli.plain import printable

if TYPE_CHECKING:
    from rich.text import Text

    from zephyrctl.events import Preview, Segment

LEGEND = "[[ ]] bears loss, {- -} is cut away, ↵ is a newline that belongs to the tokens"
COLOURS = "green bears loss, struck through is cut away, ↵ is a newline that belongs to the tokens"
_LOSS, _CONTEXT, _CUT, _SPECIAL = "bold green", "", "dim strike", "reverse"


def preview_text(preview: Preview) -> str:
    """The row without colours: `[[bears loss]]`, `{-cut away-}`."""
    lines = [_head(preview)]
    for name, segments in preview.sides:
        body = "".join(
            _bracketed("".join(s.text for s in run), bears_loss, cut)
            for (bears_loss, cut), run in groupby(segments, key=lambda s: (s.bears_loss, s.cut))
        )
        lines += [_side_head(name, segments), _indented(body)]
    return "\n".join(lines)


def preview_rich(preview: Preview) -> Text:
    """The row in colours: green bears loss, struck through is cut away, special tokens stand reversed."""
    from rich.text import Text

    whole = Text()
    whole.append(_head(preview) + "\n", style="bold")
    for name, segments in preview.sides:
        whole.append(_side_head(name, segments) + "\n", style="dim")
        for segment in segments:
            whole.append(_visible(segment.text), style=_style(segment))
        whole.append("\n")
    return whole


def _head(preview: Preview) -> str:
    return printable(preview.where) + (f"  LEFT OUT: {printable(preview.dropped)}" if preview.dropped else "")


def _side_head(name: str, segments: tuple[Segment, ...]) -> str:
    kept = sum(s.tokens for s in segments if not s.cut)
    loss = sum(s.tokens for s in segments if s.bears_loss)
    cut = sum(s.tokens for s in segments if s.cut)
    return f"  {name}: {kept} tokens, {loss} bear loss" + (f", {cut} cut away" if cut else "")


def _bracketed(text: str, bears_loss: bool, cut: bool) -> str:
    text = _visible(text)
    if cut:
        return "{-" + text + "-}"
    return f"[[{text}]]" if bears_loss else text


def _style(segment: Segment) -> str:
    base = _CUT if segment.cut else _LOSS if segment.bears_loss else _CONTEXT
    return f"{base} {_SPECIAL}".strip() if segment.special else base


def _visible(text: str) -> str:
    """The text with a sign for each character that shows nothing or would drive the terminal: a token may be one."""
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if printable(character):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))
