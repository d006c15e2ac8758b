"""Training in several processes of this machine, with or without shards."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import finetune
from finetune.recipe.schema import Recipe
from finetune.training.events import Event, Interrupted
from finetune.training.finetuning import events
from finetune.training.loop import Step
from tests.support import jobs, warm

ODD = {"train": 22, "held_out": 10, "batch_size": 7, "epsilon": 1e-3}
"""Updates of 7, 7, 7 and 1 rows: neither they nor the evaluation's 10 can be shared evenly."""

SHARDS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` tells the processes."""


def train(recipe: Recipe, run: Path, stop: int | None = None) -> int:
    """Trains in this process; after update `stop` the first process alone gets a signal."""
    return follow(events(recipe, run, resume=True), stop)


def follow(happening: Iterator[Event], stop: int | None) -> int:
    """The exit code of what happens here; after update `stop` the first process gets a signal."""
    try:
        for event in happening:
            if isinstance(event, Step) and event.number == stop and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def train_together(
    count: int,
    recipe: Recipe,
    run: Path,
    stop: int | None = None,
    *,
    environment: dict[str, str] | None = None,
    how: Callable[..., int] = train,
) -> Path:
    """Trains to the end, or to the signal after update `stop`; shows what was said if it fails."""
    output = run.with_suffix(".output")
    children = warm.start_many(
        count, how, recipe, run, stop, environment=environment, output=output
    )
    codes = warm.join(children)
    told = "\n".join(path.read_text() for path in sorted(run.parent.glob("*.[0-9]")))
    assert codes == [143 if stop else 0] * count, told
    return run


def assert_everywhere(
    count: int,
    how: Callable[..., int],
    recipe: Recipe,
    run: Path,
    environment: dict[str, str] | None = None,
) -> None:
    """That `how`, which asserts and gives 0, comes to its end in each of `count` processes."""
    train_together(count, recipe, run, environment=environment, how=how)


def assert_same(one: Path, many: Path) -> None:
    """The same rows in every update, each row evaluated once, losses and weights to rounding."""
    assert jobs.distance(jobs.weights(one), jobs.weights(many)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(many), rel=1e-4)
    for key in ("update", "examples", "tokens"):
        assert [e.get(key) for e in jobs.log(one)] == [e.get(key) for e in jobs.log(many)]
    alone, together = (jobs.result(run)["scores"]["evaluate"] for run in (one, many))
    assert alone == pytest.approx(together, rel=1e-5)
    assert finetune.load(many).evaluate() == pytest.approx(together, rel=1e-5)
