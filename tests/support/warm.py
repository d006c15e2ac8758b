"""Processes that start at once: forked from a server that has imported torch already."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "finetune.training.finetuning",
        "finetune.evaluation.predictor",
        "finetune.comparison",
        "jobs",
        "together",
    ]
)


def start(
    function: Callable[..., int | None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
    output: Path | None = None,
) -> BaseProcess:
    """Runs a module's function in a process of its own; what it returns is the exit code.

    Standard output and error go to the file `output`, if there is one, or nowhere.
    """
    child = _SERVER.Process(
        target=_run, args=(function, arguments, environment or {}, str(output or os.devnull))
    )
    child.start()
    return child


def start_many(
    count: int,
    function: Callable[..., int | None],
    *arguments: Any,
    environment: dict[str, str] | None = None,
    output: Path | None = None,
) -> list[BaseProcess]:
    """`count` processes that make one job, as torchrun starts them; outputs end in .0, .1, ..."""
    shared = {
        "WORLD_SIZE": f"{count}",
        "LOCAL_WORLD_SIZE": f"{count}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{_free_port()}",
    }
    return [
        start(
            function,
            *arguments,
            environment={
                **(environment or {}),
                **shared,
                "RANK": f"{rank}",
                "LOCAL_RANK": f"{rank}",
            },
            output=output and output.with_suffix(f".{rank}"),
        )
        for rank in range(count)
    ]


def join(children: Sequence[BaseProcess]) -> list[int | None]:
    """Waits for all; their exit codes, negative where a signal ended one."""
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def kill(child: BaseProcess) -> None:
    """SIGKILL, and waits until the system is done with the process."""
    child.kill()
    child.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(
    function: Callable[..., int | None],
    arguments: Sequence[Any],
    environment: dict[str, str],
    output: str,
) -> None:
    os.environ.update(environment)
    # The server ignores Ctrl-C; a process of its own does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        code = function(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    sys.stdout.flush()
    # At once: nobody waits for what a library would tidy up at the end.
    os._exit(code or 0)
