"""Where the command line prints: consoles that take every text as it is."""

import os
import sys

from rich.console import Console
from rich.text import Text

PIPED_WIDTH = 120
"""Columns of tables that go into a file or a pipe."""


def process() -> int:
    """Which of several processes this is; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def console(*, stderr: bool = False) -> Console:
    """A console on today's standard output or error; of several processes only the first is heard.

    Errors are heard from all. Markup is off: brackets in a user's text are text.
    """
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        stderr=stderr,
        width=None if known else PIPED_WIDTH,
        markup=False,
        highlight=False,
        emoji=False,
        quiet=process() > 0 and not stderr,
    )


def print_line(*parts: str | tuple[str, str], stderr: bool = False) -> None:
    """One line of texts and (text, style) pairs; only the terminal wraps it: paths stay whole."""
    console(stderr=stderr).print(Text.assemble(*parts), soft_wrap=True)


def settle_streams() -> None:
    """Lets a terminal that cannot show a character show `?` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """Keeps advice that libraries give to programmers off a user's screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
