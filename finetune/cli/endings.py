"""How a command ends that a signal has stopped."""

import signal
from typing import NoReturn

import typer

from finetune.cli.console import print_line
from finetune.cli.launcher import is_child
from finetune.distributed.signals import STOPS


def end_stopped(words: str, code: int) -> NoReturn:
    """Says so, and ends with that signal's exit code."""
    if is_child():
        # Whoever has started it may pass on a signal once more: it is on its way already.
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
    print_line((words, "yellow"))
    raise typer.Exit(code)
