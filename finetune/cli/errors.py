"""Turns every error into one message with its cure, and an exit code."""

import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

import typer

from finetune.cli.console import VERBOSE, get_rank, print_line
from finetune.distributed.memory import is_out_of_memory
from finetune.distributed.signals import STOP_SIGNALS
from finetune.storage.terminal import escape_controls
from task_formats import UsageError

USAGE_ERROR, UNEXPECTED_ERROR, INTERRUPTED = 2, 1, 130
"""Exit codes."""
TRACEBACK, ERROR_FOLDER = "GPTFT_TRACEBACK", "GPTFT_ERROR_FOLDER"
"""Environment variables: show tracebacks; where launched processes write their errors."""

OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--model": "--base",
    "--model-name": "--base",
    "--model-name-or-path": "--base",
    "--task-name": "--task",
    "--output": "--folder",
    "--output-dir": "--folder",
    "--overwrite-output-dir": "--overwrite",
    "--num-train-epochs": "--epochs",
    "--num-epochs": "--epochs",
    "--per-device-train-batch-size": "--batch-size",
    "--train-batch-size": "--batch-size",
    "--max-length": "--max-tokens",
    "--max-seq-length": "--max-tokens",
    "--max-train-samples": "--limit",
    "--early-stopping-patience": "--early-stopping",
    "--report-to": "--track",
    "--bf16": "--precision",
    "--fp16": "--precision",
    "--torch-compile": "--compile",
}
"""Names of options in other tools, run_glue above all, and ours."""
_FIRST_RANK_SECONDS = 3
"""Most errors occur on all processes at once: the first reports before the others."""


class ErrorReport(NamedTuple):
    """What is printed for an exception, and the exit code."""

    message: str
    cure: str
    exit_code: int
    traceback: str = ""
    time: float = 0.0
    """When it occurred, in seconds since the epoch."""


def report_error(error: BaseException) -> int:
    """Prints an exception, or writes it to a file for the launcher; returns the exit code."""
    message, cure, exit_code = _describe(error)
    trace = "" if exit_code == INTERRUPTED else "".join(traceback.format_exception(error))
    # Paths inside the current folder are relative to it.
    here = re.compile(re.escape(str(Path.cwd())) + r"([/\\]|(?![\w.-]))")
    message, cure = (here.sub(lambda m: "" if m[1] else ".", text) for text in (message, cure))
    rank = get_rank()
    if "WORLD_SIZE" in os.environ and exit_code == UNEXPECTED_ERROR:
        message = f"process {rank}: {message}"
    report = ErrorReport(message, cure, exit_code, trace, time.time())
    if folder := os.environ.get(ERROR_FOLDER):
        Path(folder, f"{rank}.json").write_text(json.dumps(report._asdict()), encoding="utf-8")
        return exit_code
    if rank > 0:
        time.sleep(_FIRST_RANK_SECONDS)
    print_error(report)
    return exit_code


def print_error(report: ErrorReport) -> None:
    """Prints a report on standard error, after the traceback if it is asked for.

    That is with --verbose, or if GPTFT_TRACEBACK is set.
    """
    if report.traceback and (VERBOSE.get() or os.environ.get(TRACEBACK)):
        sys.stderr.write(escape_controls(report.traceback))
    print_line(("error: ", "bold red"), report.message, stderr=True)
    for line in report.cure.splitlines():
        print_line("  ", line, stderr=True)


def exit_stopped(message: str, exit_code: int) -> NoReturn:
    """Prints why a signal ended the command and exits with the signal's code."""
    if "WORLD_SIZE" in os.environ:
        # The launcher may forward the signal once more while this process exits.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    print_line((message, "yellow"))
    raise typer.Exit(exit_code)


def _describe(error: BaseException) -> tuple[str, str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "", INTERRUPTED
    if isinstance(error, UsageError):
        return error.headline, error.cure, USAGE_ERROR
    if hasattr(error, "format_message"):  # an error of typer
        context = getattr(error, "ctx", None)
        if name := OTHER_NAMES.get(getattr(error, "option_name", "").replace("_", "-")):
            error.possibilities = [name]  # type: ignore[attr-defined]
        message = error.format_message().strip().partition(", unable to parse")[0]
        message = message.replace(": Value error, ", ": ")  # pydantic's words
        cure = f"See {context.command_path if context else 'gptft'} --help."
        return message[:1].lower() + message[1:], cure, USAGE_ERROR
    if is_out_of_memory(error):
        cure = "\n".join(getattr(error, "__notes__", [_USE_LESS_MEMORY]))
        return "out of memory", cure, UNEXPECTED_ERROR
    if isinstance(error, FileExistsError):
        cure = "Remove it, or choose another name with -o."
        return f"{error.filename} already exists", cure, USAGE_ERROR
    if isinstance(error, OSError) and error.filename is not None:
        cure = "Check the path and permissions."
        return f"{error.filename}: {error.strerror}", cure, USAGE_ERROR
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        around = error.object[max(error.start - 40, 0) : error.end + 40]
        cure = "Rename the file or folder, or correct the text."
        return f"{around!r} is not valid UTF-8", cure, USAGE_ERROR
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path contains a NUL character", "Correct the path.", USAGE_ERROR
    first, _, _ = str(error).strip().partition("\n")
    name = type(error).__name__
    return f"{name}: {first}" if first else name, _UNEXPECTED, UNEXPECTED_ERROR


_USE_LESS_MEMORY = """\
Process fewer tokens at a time (with dropout, other masks are drawn):
  --set train.tokens_per_forward=4096
Or shorten the longest texts: --max-tokens 256"""

_UNEXPECTED = f"""\
This is a bug in gptft or one of its dependencies.
Run the command again with --verbose to see the traceback (or set {TRACEBACK}=1)."""
