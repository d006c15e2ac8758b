"""gptft as a contestant: updates as `gptft train` makes them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import inputs
from benchmarks.harness import Measurement, Scale, clock
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe
from finetune.training.finetuning import events
from finetune.training.loop import Step

BATCH, WIDTH = 32, 128
"""Examples per update, and the maximum sequence length: what run_glue pads to."""
WARM = 4
"""Updates that are not timed, while memory is still being allocated."""


def train_rte(
    scale: Scale,
    *,
    shape: str = "small",
    updates: int,
    repeated: bool = False,
    **train: Any,
) -> Measurement:
    """Trains updates of 32 RTE pairs after the warm-up; `train` changes the recipe's train part.

    RTE has rows for 77 updates. With `repeated` they come from a file that repeats its rows.
    """
    train = {"lm_coefficient": 0, "precision": "fp32", "max_tokens": WIDTH, **train}
    count = BATCH * (updates + WARM)
    changes: dict[str, Any] = {
        "base.path": str(inputs.base(scale, shape)),
        "data.path": str(scale.data / "glue"),
        "data.limit": count,
    }
    if repeated:
        changes |= {"data.path": None, "data.name": None, "data.predict": None}
        changes |= {"data.train": str(inputs.pairs(scale, count))}
    return run(load_recipe("rte", _dotted(changes, train)), WARM)


def train_choices(scale: Scale, *, updates: int, batch: int, **train: Any) -> Measurement:
    """Trains updates of RACE-like questions with the LM loss."""
    rows = inputs.questions(scale, batch * (updates + 1))
    path = inputs.write_rows(scale.material / f"questions-{len(rows)}.jsonl", rows)
    changes = {
        "base.path": str(inputs.base(scale)),
        "data.path": None,
        "data.name": None,
        "data.train": str(path),
        "data.predict": None,
    }
    return run(load_recipe("race", _dotted(changes, {"batch_size": batch, **train})), warm=1)


def run(recipe: Recipe, warm: int) -> Measurement:
    """Trains one epoch through `finetune.events`; the first `warm` updates are not timed."""
    tokens: list[int] = []

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            for event in events(recipe, Path(folder) / "run"):
                if isinstance(event, Step):
                    tokens.append(event.tokens)
                    yield event.examples

    measurement = clock(steps(), warm)
    return measurement._replace(facts={"tokens": float(sum(tokens[warm:]))})


def _dotted(changes: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    once = {"epochs": 1, "checkpoint_minutes": None, **train}
    return {"data.evaluate": None, **changes, **{f"train.{k}": v for k, v in once.items()}}
