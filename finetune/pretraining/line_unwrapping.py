"""Joins lines that were wrapped at a fixed width, as in texts of Project Gutenberg."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

MAX_LINE = 2**20
"""Longer lines, in characters, are passed on in parts."""
_WIDTHS, _FULL = range(50, 101), 0.6


def unwrap_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Joins the lines of each paragraph if the text seems to be wrapped at a fixed width W.

    It does when, in its first block, 95 % of the lines have at most W characters, W lies between
    50 and 100, and half of the lines have at least 0.6 · W. Then two lines are joined if the first
    word of the second would not have fitted within W, or if the first has at least 0.6 · W
    characters and the second begins with a small letter. Blank and indented lines are not joined,
    so paragraphs, headings and verse stay.
    """
    blocks = iter(blocks)
    first = next(blocks, "")
    width = detect_width(first)
    text = chain([first], blocks)
    return text if width is None else join_lines(text, width)


def detect_width(text: str) -> int | None:
    """Returns the width W at which the lines of a text were wrapped; None if they were not."""
    lengths = sorted(len(line) for line in text.split("\n") if line.strip())
    if len(lengths) < 20:
        return None
    width, middle = lengths[int(0.95 * len(lengths))], lengths[len(lengths) // 2]
    return width if width in _WIDTHS and middle >= _FULL * width else None


def join_lines(blocks: Iterable[str], width: int) -> Iterator[str]:
    """Joins lines wrapped at `width`; the result does not depend on where the blocks end."""
    pending = ""
    for block in blocks:
        *complete, partial = (pending + block).split("\n")
        # The last complete line waits until the next one is known.
        pending = "\n".join([*complete[-1:], partial])
        yield "".join(line + _separator(line, after, width) for line, after in pairwise(complete))
        if len(pending) > MAX_LINE:
            yield pending
            pending = ""
    lines = pending.split("\n")
    yield "".join(line + _separator(line, after, width) for line, after in pairwise(lines))
    yield lines[-1]


def _separator(line: str, after: str, width: int) -> str:
    """The text between a line and the one after it."""
    words = after.split(maxsplit=1)
    if not line.strip() or not words or after[0].isspace():
        return "\n"
    length = len(line.rstrip())
    continues = after[0].islower() and length >= _FULL * width
    if not continues and length + 1 + len(words[0]) <= width:
        return "\n"
    return "" if line.endswith(("-", "—")) or line[-1].isspace() else " "
