"""Launches one command in several processes, with the environment variables of torchrun."""

import ctypes
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import typer

from finetune.cli.console import console
from finetune.cli.errors import ERROR_FOLDER, USAGE_ERROR, ErrorReport, print_error
from finetune.distributed.signals import SAVE_SIGNALS, STOP_SIGNALS

_LAUNCHER = "GPTFT_LAUNCHER"
"""Environment variable: process id of the launcher."""
_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
_POLL_SECONDS = 0.05
_FAILURE_SECONDS = 2.0
"""Time for the other processes to exit after one has failed."""
_STOP_SECONDS = 60.0
"""The same after a stop, when a checkpoint may be being written."""
_PORTS = range(20_000, 32_000)
"""Below the range from which systems assign ports, so that no other program takes one."""


def launch_processes(
    context: typer.Context, num_processes: int, *, independent: bool = False
) -> None:
    """Runs the command in several processes and exits; returns at once in one of them.

    If they are `independent`, the others go on where one has failed.
    """
    if num_processes > 1 and "RANK" not in os.environ:
        arguments = context.find_root().obj
        raise typer.Exit(run_processes(arguments, num_processes, independent=independent))
    end_with_launcher()


def end_with_launcher() -> None:
    """Makes Linux send SIGTERM to this process, if it was launched, when its launcher is killed."""
    # Removed: processes that this one starts have another parent.
    launcher = os.environ.pop(_LAUNCHER, None)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # It has been killed already.
        os.kill(os.getpid(), signal.SIGTERM)


def run_processes(
    arguments: Sequence[str], num_processes: int, *, independent: bool = False
) -> int:
    """Runs `gptft ARGUMENTS` in several processes and returns their exit code.

    SIGINT, SIGTERM and SIGUSR1 are forwarded to every process. If one fails, the others are
    ended unless they are `independent`, and the earliest error is printed. After a stop the code is
    128 plus the signal.
    """
    children: list[subprocess.Popen[bytes]] = []
    received: set[int] = set()  # the stop signals

    def forward(number: int, frame: FrameType | None) -> None:
        received.update({number}.intersection(STOP_SIGNALS))
        if os.name != "nt":  # On Windows Ctrl-C reaches all processes of a console.
            for child in children:
                child.send_signal(number)

    handlers = {n: signal.signal(n, forward) for n in (*STOP_SIGNALS, *SAVE_SIGNALS)}
    # Without -P modules of the current folder would come first, also a yaml.py in it.
    command = [sys.executable, "-P", "-m", "finetune", *arguments]
    with TemporaryDirectory(prefix="gptft-") as folder:
        shared = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_processes)),
            **os.environ,
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_find_free_port()),
            ERROR_FOLDER: folder,
            _LAUNCHER: str(os.getpid()),
        }
        try:
            for rank in map(str, range(num_processes)):
                environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
                children.append(subprocess.Popen(command, env=environment))
            exit_codes = _wait(children, received, math.inf if independent else _FAILURE_SECONDS)
        finally:
            for child in children:
                child.kill()
                child.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        texts = [path.read_text("utf-8") for path in Path(folder).glob("*.json")]
    errors = [ErrorReport(**json.loads(text)) for text in texts]
    return _finish(exit_codes, errors, received)


def _find_free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait(
    children: Sequence[subprocess.Popen[bytes]], stops: Collection[int], failure_seconds: float
) -> list[int | None]:
    """Exit codes of all processes; None for one still running some time after another failed."""
    deadline = math.inf
    while None in (exit_codes := [child.poll() for child in children]):
        if any(exit_codes):
            seconds = _STOP_SECONDS if stops else failure_seconds
            deadline = min(deadline, time.monotonic() + seconds)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    return exit_codes


def _finish(
    exit_codes: Sequence[int | None], errors: Sequence[ErrorReport], stops: Collection[int]
) -> int:
    """Prints the earliest error, if any, and returns the exit code of all processes together."""
    failed = {rank: code for rank, code in enumerate(exit_codes) if code}
    if not failed:
        return 0
    console().show_cursor()
    if stops and not any(error.exit_code == USAGE_ERROR for error in errors):
        # After a stop the other errors mostly say that a process has gone.
        return 128 + min(stops)
    for rank, code in failed.items():
        if code < 0 and not stops:
            cure = "Out of memory? Use fewer processes, or --set train.tokens_per_forward=1024."
            name = signal.Signals(-code).name
            what = f"process {rank} was killed by {name}"
            print_error(ErrorReport(what, cure if name == "SIGKILL" else "", 1))
            return 1
    if not errors:
        return next(iter(failed.values()))
    error = min(errors, key=lambda error: error.time)
    print_error(error)
    return error.exit_code
