"""Test functions in other processes, alone or as one job, with or without shards."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.recipe.schema import Recipe
from finetune.training.events import Event, Interrupted
from finetune.training.finetuning import events
from finetune.training.loop import Step
from tests.support import jobs

# Processes fork from a server that has imported everything already, and so start at once.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.support.preloaded"])

ODD = {"train": 22, "held_out": 10, "batch_size": 7, "epsilon": 1e-3}
"""Updates of 7, 7, 7 and 1 rows: neither they nor the evaluation's 10 can be shared evenly."""

SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


def start(
    function: Callable[..., int],
    *arguments: Any,
    environment: dict[str, str] | None = None,
    output: Path | None = None,
) -> BaseProcess:
    """Runs a module's function in a process; what it returns is the exit code.

    Standard output and error go to the file `output`, if there is one, or nowhere.
    """
    child = _SERVER.Process(
        target=_run, args=(function, arguments, environment or {}, str(output or os.devnull))
    )
    child.start()
    return child


def _run(
    function: Callable[..., int], arguments: Sequence[Any], environment: dict[str, str], output: str
) -> None:
    os.environ.update(environment)
    os.fsync = lambda descriptor: None  # As in the process of pytest.
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
    # At once, without what libraries do at the end of a process.
    os._exit(code)


def run_processes(
    count: int,
    function: Callable[..., int],
    *arguments: Any,
    output: Path,
    environment: dict[str, str] | None = None,
    code: int = 0,
) -> None:
    """Runs a function in `count` processes of one job; all must end with the exit code.

    Outputs go to files whose suffixes are .0, .1, ..., and are shown if the assertion fails.
    """
    job = {
        "WORLD_SIZE": f"{count}",
        "LOCAL_WORLD_SIZE": f"{count}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{free_port()}",
        **(environment or {}),
    }
    outputs, children = [output.with_suffix(f".{rank}") for rank in range(count)], []
    for rank, path in enumerate(outputs):
        place = {**job, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if count > 1 else environment
        children.append(start(function, *arguments, environment=place, output=path))
    for child in children:
        child.join()
    text = "\n".join(path.read_text() for path in outputs)
    assert [child.exitcode for child in children] == [code] * count, text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(recipe: Recipe, run: Path, stop: int | None = None) -> int:
    """Trains in this process; after update `stop` the first process alone gets a signal."""
    return consume(events(recipe, run, resume=True), stop)


def consume(stream: Iterator[Event], stop: int | None) -> int:
    """Runs to the end and returns the exit code; rank 0 gets a signal after update `stop`."""
    try:
        for event in stream:
            if isinstance(event, Step) and event.number == stop and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def train_in_processes(
    count: int,
    recipe: Any,
    run: Path,
    stop: int | None = None,
    *,
    environment: dict[str, str] | None = None,
    function: Callable[..., int] = train,
) -> Path:
    """Trains to the end, or to the signal after update `stop`; returns the run."""
    code = 143 if stop else 0
    run_processes(
        count, function, recipe, run, stop, output=run, environment=environment, code=code
    )
    return run


def assert_same(one: Path, many: Path) -> None:
    """The same rows in every update, each row evaluated once, losses and weights to rounding."""
    assert jobs.distance(jobs.weights(one), jobs.weights(many)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(many), rel=1e-4)
    for key in ("update", "examples", "tokens"):
        assert [e.get(key) for e in jobs.log(one)] == [e.get(key) for e in jobs.log(many)]
    scores, others = (jobs.result(run)["scores"]["evaluate"] for run in (one, many))
    assert scores == pytest.approx(others, rel=1e-5)
    assert finetune.load(many).evaluate() == pytest.approx(others, rel=1e-5)
