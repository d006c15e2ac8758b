"""Our side: updates as `gptft train` makes them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.contest import Found, Scale, clock
from finetune.models.speedups.allocator import keep_freed_memory
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe
from finetune.training.loop import Step
from finetune.training.train import events

BATCH, WIDTH = 32, 128
"""Examples of an update, and the longest pair: what run_glue pads to."""
WARM = 4
"""Updates that are not timed: until then memory is still being found."""


def train_rte(
    scale: Scale,
    *,
    shape: str = "small",
    updates: int,
    allocator: bool = True,
    repeated: bool = False,
    **train: Any,
) -> Found:
    """Updates of 32 RTE pairs after those to warm up; `train` replaces fields of that part.

    RTE has rows for 77 updates: `repeated`, they come from a file that has its rows over and over.
    """
    if allocator:
        keep_freed_memory()
    train = {"lm_coefficient": 0, "precision": "fp32", "max_tokens": WIDTH, **train}
    count = BATCH * (updates + WARM)
    changes: dict[str, Any] = {
        "base.path": str(material.base(scale, shape)),
        "data.path": str(scale.data / "glue"),
        "data.limit": count,
    }
    if repeated:
        changes |= {"data.path": None, "data.name": None, "data.predict": None}
        changes |= {"data.train": str(material.pairs(scale, count))}
    return run(load_recipe("rte", _dotted(changes, train)), WARM)


def train_choices(scale: Scale, *, updates: int, batch: int, **train: Any) -> Found:
    """Updates of RACE-like questions, with the LM loss."""
    keep_freed_memory()
    rows = material.questions(scale, batch * (updates + 1))
    path = material.write_rows(scale.material / f"questions-{len(rows)}.jsonl", rows)
    changes = {
        "base.path": str(material.base(scale)),
        "data.path": None,
        "data.name": None,
        "data.train": str(path),
        "data.predict": None,
    }
    return run(load_recipe("race", _dotted(changes, {"batch_size": batch, **train})), warm=1)


def run(recipe: Recipe, warm: int) -> Found:
    """One epoch's updates through the public generator of events, the first ones not timed."""
    tokens: list[int] = []

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            for event in events(recipe, Path(folder) / "run"):
                if isinstance(event, Step):
                    tokens.append(event.tokens)
                    yield event.examples

    found = clock(steps(), warm)
    return found._replace(facts={"tokens": float(sum(tokens[warm:]))})


def _dotted(changes: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    once = {"epochs": 1, "checkpoint_minutes": None, **train}
    return {"data.evaluate": None, **changes, **{f"train.{k}": v for k, v in once.items()}}
