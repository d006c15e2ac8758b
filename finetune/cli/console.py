"""Printing to the terminal."""

import logging
import os
import sys
from collections.abc import Iterable
from contextvars import ContextVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from finetune.storage.terminal import escape_controls
from task_formats import UsageError

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
VERBOSE: ContextVar[bool] = ContextVar("verbose", default=False)
"""The options --quiet and --verbose of the current command."""
_HANDLER = "gptft --verbose"
PIPED_WIDTH = 120
"""Width of tables in columns when the output is a file or a pipe."""


def get_rank() -> int:
    """Rank of this process; 0 for a single process."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


class SafeConsole(Console):
    """A console that escapes the control characters of texts, but not its own."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Renders as every console, without control characters in the text."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else escape_controls(segment.text)
            yield segment._replace(text=text)


def console(*, stderr: bool = False, progress: bool = False) -> Console:
    """A console on the current standard output or standard error; `progress` obeys --quiet.

    Only the first process writes to standard output. Markup is off: brackets in a user's text
    are text.
    """
    stream = sys.stderr if stderr else sys.stdout
    known_width = stream.isatty() or "COLUMNS" in os.environ
    return SafeConsole(
        stderr=stderr,
        width=None if known_width else PIPED_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
        quiet=(get_rank() > 0 and not stderr) or (progress and QUIET.get()),
    )


def show_status(text: str) -> Status:
    """A spinner with a text on standard error, until its block ends; `update` changes the text."""
    return console(stderr=get_rank() == 0, progress=True).status(Text(text))


def print_line(*parts: str | tuple[str, str], stderr: bool = False) -> None:
    """Prints texts and (text, style) pairs as one line, without wrapping paths."""
    # rich would drop some control characters without a trace.
    safe = (
        escape_controls(part) if isinstance(part, str) else (escape_controls(part[0]), part[1])
        for part in parts
    )
    console(stderr=stderr).print(Text.assemble(*safe), soft_wrap=True)


def make_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table without lines but one under the header."""
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.columns[0].style = "cyan"
    for row in rows:
        table.add_row(*map(escape_controls, row))
    return table


def format_count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, whose plural is given unless it ends in s.

    >>> format_count(1, "update"), format_count(1200, "row")
    ('1 update', '1,200 rows')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def format_bytes(number: int) -> str:
    """A number of bytes in MiB or GiB.

    >>> format_bytes(3 * 2**20), format_bytes(5 * 2**29)
    ('3 MiB', '2.5 GiB')
    """
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"


def repair_standard_streams() -> None:
    """Opens standard streams that are closed; or a file of the run would take their numbers.

    Raises:
        UsageError: Standard output is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise UsageError("standard output is closed", cure="Redirect it to a file or /dev/null.")


def replace_unprintable_characters() -> None:
    """Makes the standard streams print `?` for characters that the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def silence_libraries() -> None:
    """Turns off advice of libraries to programmers, unless --verbose is given."""
    if VERBOSE.get():
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Applies --quiet and --verbose: with the latter the logger "finetune" writes to stderr."""
    QUIET.set(quiet)
    VERBOSE.set(verbose)
    logger = logging.getLogger("finetune")
    for handler in [handler for handler in logger.handlers if handler.name == _HANDLER]:
        logger.removeHandler(handler)
    if verbose:
        handler = logging.StreamHandler()
        handler.name = _HANDLER
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.NOTSET)
