"""What goes wrong, in words: one message with its cure, and an exit code."""

import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from finetune.cli.console import print_line, process
from finetune.distributed.memory import is_out_of_memory
from task_formats import UsageError

MISTAKE, BROKEN, INTERRUPTED = 2, 1, 130
TRACEBACK, FAULT_FOLDER = "GPTFT_TRACEBACK", "GPTFT_FAULT_FOLDER"

_HEADSTART = 3
"""Seconds in which the first process may name a mistake that all of them find."""


class Fault(NamedTuple):
    """A message, what cures it, the exit code, the traceback, and when it happened."""

    what: str
    cure: str
    code: int
    trace: str = ""
    when: float = 0.0


def report(error: BaseException) -> int:
    """Tells the user, or the process that started this one, what happened; the exit code."""
    fault = explain(error)
    if folder := os.environ.get(FAULT_FOLDER):
        Path(folder, f"{process()}.json").write_text(json.dumps(fault._asdict()), encoding="utf-8")
        return fault.code
    if process() > 0:
        # A mistake is mostly found by all processes at once, and then told by the first.
        time.sleep(_HEADSTART)
    tell(fault, prefix=f"process {process()}: " if process() else "")
    return fault.code


def tell(fault: Fault, prefix: str = "") -> None:
    """Prints a fault on standard error, its traceback first where it is asked for."""
    if fault.trace and os.environ.get(TRACEBACK):
        sys.stderr.write(fault.trace)
    print_line(("error: ", "bold red"), prefix, fault.what, stderr=True)
    for line in fault.cure.splitlines():
        print_line("  ", line, stderr=True)


def explain(error: BaseException) -> Fault:
    """The fault an exception stands for."""
    if isinstance(error, KeyboardInterrupt):
        return Fault("stopped from the keyboard", "", INTERRUPTED, "", time.time())
    what, cure, code = _words(error)
    trace = "".join(traceback.format_exception(error))
    return Fault(_seen_from_here(what), _seen_from_here(cure), code, trace, time.time())


def _seen_from_here(text: str) -> str:
    """The text with paths below the current folder written from there."""
    here = str(Path.cwd())
    return re.sub(re.escape(here) + r"(?![\w.-])", ".", text.replace(here + os.sep, ""))


def _words(error: BaseException) -> tuple[str, str, int]:
    if isinstance(error, UsageError):
        return error.headline, error.cure, MISTAKE
    if hasattr(error, "format_message"):
        return _command_line(error)
    if is_out_of_memory(error):
        return "out of memory", "\n".join(getattr(error, "__notes__", [_SMALLER])), BROKEN
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", "Check the path and its rights.", MISTAKE
    first = next(iter(str(error).strip().splitlines()), "")
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return what, _UNEXPECTED, BROKEN


def _command_line(error: Any) -> tuple[str, str, int]:
    """Typer's own complaint about the words of the command, in our manner."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gptft"
    message = error.format_message().strip().partition(", unable to parse")[0]
    return message[:1].lower() + message[1:], f"See {command} --help.", MISTAKE


_SMALLER = """\
Compute an update in smaller pieces, with the same result: --set train.tokens_per_forward=4096
Or shorten the longest texts: --max-tokens 256"""

_UNEXPECTED = f"""\
This is a fault of gptft, or of something below it.
Set {TRACEBACK}=1 and run the command again to see where it happened."""
