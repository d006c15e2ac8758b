"""Runs that get a signal at a random moment: between updates, during a save, at any time."""

import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune.recipe.schema import Recipe
from finetune.training.events import Interrupted
from finetune.training.finetuning import events
from tests.support import processes

NO_CHECKPOINT = 99
"""Exit code of a run that was stopped while it prepared its data, with nothing to save."""
NOT_STARTED = (NO_CHECKPOINT, -signal.SIGTERM)
"""Exit codes of a run that SIGTERM ended before its first update."""


class Moment(NamedTuple):
    """When the signal is sent: at the n-th event or file operation, or after some seconds."""

    kind: Literal["event", "file", "seconds"]
    at: float


def draw_moment(draw: random.Random, updates: int, seconds: float = 0.0) -> Moment:
    """Any moment of a run that saves a checkpoint after every update; mostly during a save."""
    kind = draw.choice(["event", "file", "file", *["seconds"] * (seconds > 0)])
    most = {"event": updates, "file": 10 * updates, "seconds": seconds}[kind]
    return Moment(kind, draw.uniform(0, seconds) if kind == "seconds" else draw.randint(1, most))


def run_interrupted(
    recipe: Recipe, run: Path, moment: Moment, number: signal.Signals
) -> int | None:
    """Resumes a run in a process that gets a signal. Returns its exit code, 0 if it finished."""
    inside = moment if moment.kind != "seconds" else None
    child = processes.start(resume_run, recipe, run, inside, number)
    if inside is None:
        child.join(moment.at)
        if child.is_alive():
            os.kill(child.pid, number)
    child.join()
    return child.exitcode


def resume_run(recipe: Recipe, run: Path, moment: Moment | None, number: int) -> int:
    """Trains to the end, and sends a signal to this process at some moment."""
    count = itertools.count(1)

    def count_and_signal() -> None:
        if moment and next(count) == moment.at:
            os.kill(os.getpid(), number)

    if moment and moment.kind == "file":
        for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
            setattr(os, name, _call_before(count_and_signal, getattr(os, name)))
    try:
        for _ in events(recipe, run, resume=True):
            if moment and moment.kind == "event":
                count_and_signal()
    except Interrupted as stop:
        return NO_CHECKPOINT if stop.update is None else stop.exit_code
    return 0


def _call_before(first: Callable[[], None], second: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **options: Any) -> Any:
        first()
        return second(*arguments, **options)

    return both
