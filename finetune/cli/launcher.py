"""Several processes on this machine that make one job, as torchrun starts them."""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from finetune.cli.console import console
from finetune.cli.errors import BROKEN, FAULT_FOLDER, MISTAKE, Fault, tell
from finetune.distributed.signals import STOPS

_POLL = 0.05
_FAREWELL = 2.0
"""Seconds that the others have to end by themselves when one has failed."""
_SETTLING = 60.0
"""Seconds for the same when it was asked to stop, once its state is saved."""
_PORTS = range(20_000, 32_000)
"""Below those that systems hand out by themselves, so that only another job can take one."""
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)

Child = subprocess.Popen[bytes]


def is_child() -> bool:
    """True in a process that this module, torchrun or accelerate has started as one of several."""
    return "WORLD_SIZE" in os.environ


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Runs `gptft ARGUMENTS` in `count` processes; the exit code of the job.

    Signals are passed on. When one process fails the others are ended, and the error that came
    first is told.
    """
    children: list[Child] = []
    with TemporaryDirectory(prefix="gptft-") as name:
        folder = Path(name)
        try:
            with _passed_on(children) as passed:
                _start(arguments, count, folder, children)
                _wait(children, folder)
            died = [child.returncode for child in children]
            _end(children)
        finally:
            for child in children:
                child.kill()
        return _conclude(died, folder, passed)


def _start(arguments: Sequence[str], count: int, folder: Path, children: list[Child]) -> None:
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "WORLD_SIZE": f"{count}",
        "LOCAL_WORLD_SIZE": f"{count}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{_free_port()}",
        FAULT_FOLDER: str(folder),
    }
    command = [sys.executable, "-m", "finetune", *arguments]
    for rank in range(count):
        own = {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        children.append(subprocess.Popen(command, env={**shared, **own}))


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def _passed_on(children: Sequence[Child]) -> Iterator[set[int]]:
    """Hands signals down while it lasts: the processes save their state, then all is over.

    Gives the numbers of those that were handed down.
    """
    passed: set[int] = set()

    def hand_down(number: int, frame: FrameType | None) -> None:
        passed.add(number)
        for child in children:
            child.send_signal(number)

    old = {number: signal.signal(number, hand_down) for number in _SIGNALS}
    try:
        yield passed
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _wait(children: Sequence[Child], folder: Path) -> None:
    """Until all have ended well, or one has not and the others have had time to do so, too."""
    deadline = math.inf
    while None in (codes := [child.poll() for child in children]):
        now = time.monotonic()
        if any(code and not _is_stop(rank, code, folder) for rank, code in enumerate(codes)):
            deadline = min(deadline, now + _FAREWELL)
        elif any(codes):
            deadline = min(deadline, now + _SETTLING)
        if now > deadline:
            return
        time.sleep(_POLL)


def _is_stop(rank: int, code: int, folder: Path) -> bool:
    """Whether a process has ended as it was asked to, with its state saved."""
    return code - 128 in STOPS and _read(folder / f"{rank}.json") is None


def _end(children: Sequence[Child]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()


def _conclude(died: Sequence[int | None], folder: Path, passed: Collection[int]) -> int:
    """Tells the fault that came first; `died` holds exit codes, None for what had to be ended.

    A process that was killed by a signal that was `passed` on to it had not begun, or was over.
    """
    failed = [rank for rank, code in enumerate(died) if code]
    if not failed:
        return 0
    console().show_cursor()
    told = {rank: fault for rank in failed if (fault := _read(folder / f"{rank}.json"))}
    silent = [rank for rank in failed if rank not in told]
    killed = {rank: -code for rank in silent if (code := died[rank] or 0) < 0}
    stops = [number for number in killed.values() if number in passed and number in STOPS]
    if stops and not any(fault.code == MISTAKE for fault in told.values()):
        # What the others say then is mostly that this one is gone.
        return 128 + stops[0]
    if killed and not stops:
        rank, number = next(iter(killed.items()))
        tell(_killed(number), f"process {rank} ")
        return BROKEN
    if not told:
        # Ended on request: each process has said what there was to say.
        return died[silent[0]] or BROKEN
    rank = min(told, key=lambda rank: told[rank].when)
    tell(told[rank], f"process {rank}: " if told[rank].code != MISTAKE else "")
    return told[rank].code


def _killed(number: int) -> Fault:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    cure = "Out of memory? Use fewer processes, or --set train.tokens_per_forward=1024."
    return Fault(f"was killed by {name}", cure if name == "SIGKILL" else "", BROKEN)


def _read(path: Path) -> Fault | None:
    return Fault(**json.loads(path.read_text("utf-8"))) if path.exists() else None
