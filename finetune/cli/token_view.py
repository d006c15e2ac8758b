"""Views as coloured tokens, or as marked text where there are no colours."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

SEGMENTS = ("cyan", "green", "magenta", "yellow")
"""A colour for each text of a view, in order."""
_SPECIAL = {"S": "black on white", "D": "black on white", "E": "bold white on blue"}
_LONGEST_CUT = 60
"""Characters shown of what was cut."""


class Token(NamedTuple):
    """One token: its text, or S, D, E; and whether the LM loss is taken on it."""

    text: str
    lm: bool = False
    unknown: bool = False
    read: bool = False
    """True where the head reads."""


class Piece(NamedTuple):
    """The kept tokens of a text, how many were cut from its end, and what these said."""

    tokens: tuple[Token, ...]
    cut: int = 0
    cut_text: str = ""


class Segment(NamedTuple):
    """The pieces that stand between two delimiters."""

    pieces: tuple[Piece, ...]
    color: int = 0
    """Place of its template in the format: a text has one colour in mirrored views."""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The kept tokens of all pieces."""
        return tuple(token for piece in self.pieces for token in piece.tokens)


class TokenView(NamedTuple):
    """S, the segments with D between them, and E."""

    start: Token
    segments: tuple[Segment, ...]
    delimiters: tuple[Token, ...]
    extract: Token

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All of them in order."""
        found = [self.start]
        for k, segment in enumerate(self.segments):
            found += [self.delimiters[k - 1]] if k else []
            found += segment.tokens
        return (*found, self.extract)


def render(view: TokenView, colors: bool) -> Text:
    """The view in one text that wraps; without colours tokens are parted by bars."""
    text = Text()
    _special(text, view.start, colors)
    for k, segment in enumerate(view.segments):
        if k:
            _special(text, view.delimiters[k - 1], colors)
        for piece in segment.pieces:
            _append(text, piece, segment.color, colors)
    _special(text, view.extract, colors)
    return text


def _append(text: Text, piece: Piece, color: int, colors: bool) -> None:
    for n, token in enumerate(piece.tokens):
        text.append("|" if n and not colors else "")
        text.append(_visible(token.text), _style(token, color, n) if colors else "")
    if piece.cut:
        text.append(_cut(piece), "red strike" if colors else "")


def summary(view: TokenView) -> str:
    """The view in numbers."""
    tokens = view.tokens
    read = next((n + 1 for n, token in enumerate(tokens) if token.read), 0)
    lm = sum(token.lm for token in tokens)
    cut = sum(piece.cut for segment in view.segments for piece in segment.pieces)
    parts = [f"{len(tokens)} tokens", f"head reads token {read}", f"LM loss on {lm}"]
    return ", ".join(parts + ([f"{cut} cut"] if cut else []))


def legend(colors: bool, templates: Sequence[str]) -> Text:
    """What the colours and marks mean."""
    text = Text()
    for name, meaning in (
        ("S", "start"),
        ("D", "delimiter"),
        ("E", "extract: the head reads here"),
    ):
        _special(text, Token(name), colors)
        text.append(f"{' ' if colors else ''}{meaning}   ")
    if not colors:
        text.append('| between tokens   <-3: "..."> three tokens cut')
        return text
    text.append("\n")
    for k, template in enumerate(templates):
        text.append(f" {template} ", SEGMENTS[k % len(SEGMENTS)])
    text.append("  ").append("underlined", "underline").append(" carries LM loss   ")
    text.append("struck", "red strike").append(" was cut   ")
    text.append("unknown", "black on yellow").append(" token")
    return text


def _special(text: Text, token: Token, colors: bool) -> None:
    if colors:
        style = _SPECIAL[token.text] + (" underline" if token.lm else "")
        text.append(f" {token.text} ", style)
    else:
        space = "" if not text or text.plain.endswith((" ", "\n")) else " "
        text.append(f"{space}[{token.text}] ")


def _style(token: Token, color: int, n: int) -> str:
    """The segment's colour, every other token brighter, so that their ends can be seen."""
    if token.unknown:
        return "black on yellow"
    name = SEGMENTS[color % len(SEGMENTS)]
    return ("bright_" if n % 2 else "") + name + (" underline" if token.lm else "")


def _cut(piece: Piece) -> str:
    shown = " ".join(piece.cut_text.split())
    more = "..." if len(shown) > _LONGEST_CUT else ""
    return f' <-{piece.cut}: "{shown[:_LONGEST_CUT]}{more}"> '


def _visible(text: str) -> str:
    """Line ends and tabs as signs: a view is one stream of tokens."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
