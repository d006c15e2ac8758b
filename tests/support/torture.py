"""Signals at random moments: between updates, amid saves, at any time at all."""

import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune.recipe.schema import Recipe
from finetune.training.events import Interrupted
from finetune.training.train import events
from tests.support import warm

UNREADY = 99
"""Exit code of a run that was stopped while its data was made ready: there was nothing to save."""
NOT_BEGUN = (UNREADY, -signal.SIGTERM)
"""Of one that SIGTERM ended before its first update; the latter before it looked for signals."""
_OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir")


class Moment(NamedTuple):
    """When a signal comes: at the n-th event or operation on files, or after some seconds."""

    kind: Literal["event", "file", "seconds"]
    at: float


def draw_moment(draw: random.Random, updates: int, seconds: float = 0.0) -> Moment:
    """Any moment of a run that saves a state after every update; most of them amid a save."""
    kind = draw.choice(
        ["event", "file", "file", "seconds"] if seconds else ["event", "file", "file"]
    )
    most = {"event": updates, "file": 10 * updates, "seconds": seconds}[kind]
    return Moment(kind, draw.uniform(0, seconds) if kind == "seconds" else draw.randint(1, most))


def strike(recipe: Recipe, run: Path, moment: Moment, number: signal.Signals) -> int | None:
    """Goes on with a run in a process that gets a signal; its exit code, 0 if it was finished."""
    inside = moment if moment.kind != "seconds" else None
    child = warm.start(go_on, recipe, run, inside, number)
    if inside is None:
        child.join(moment.at)
        if child.is_alive():
            os.kill(child.pid, number)
    child.join()
    return child.exitcode


def go_on(recipe: Recipe, run: Path, moment: Moment | None, number: int) -> int:
    """Trains to the end, and at some moment gives this process a signal."""
    count = itertools.count(1)

    def pass_by() -> None:
        if moment and next(count) == moment.at:
            os.kill(os.getpid(), number)

    if moment and moment.kind == "file":
        for name in _OPERATIONS:
            setattr(os, name, _after(pass_by, getattr(os, name)))
    try:
        for _ in events(recipe, run, resume=True):
            if moment and moment.kind == "event":
                pass_by()
    except Interrupted as stop:
        return UNREADY if stop.update is None else stop.exit_code
    return 0


def _after(first: Callable[[], None], second: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **options: Any) -> Any:
        first()
        return second(*arguments, **options)

    return both
