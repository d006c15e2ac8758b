"""The cells of a study: the runs that make up one table of a task."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.recipe.loading import override_recipe
from finetune.recipe.schema import Recipe, TrainConfig
from task_formats import UsageError, suggest

PAPER_COEFFICIENT = 0.5
"""λ of GPT-1 (section 4.1)."""
Kind = Literal["majority", "prompt", "scratch", "finetune"]


@dataclass(frozen=True)
class Design:
    """What is compared."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds. A seed draws the demonstrations of a few-shot cell; for a trained cell it
    draws head, order, dropout and the fraction of labels."""
    shots: tuple[int, ...] | None = None
    """Numbers of demonstrations; None is 0, 4 and 32 if the task has a prompt."""
    fractions: tuple[float, ...] = ()
    """Fractions of the labels to fine-tune on, besides all of them."""
    scratch: Mapping[str, Any] = field(default_factory=dict)
    """Dotted recipe values for training from scratch only, {"train.learning_rate": 1e-3}."""

    def __post_init__(self) -> None:
        """Raises UsageError for fractions and for values of `scratch` that no study can have."""
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                what = f"{fraction:g} is not a fraction of the labels"
                raise UsageError(what, cure="Give numbers over 0 and up to 1.")
        for key in self.scratch.keys() & {"train.seed", "base.from_scratch"}:
            what = f"{key} cannot be set for training from scratch only: the study sets it"
            raise UsageError(what, cure="Leave it out; all methods share the same seeds.")


@dataclass(frozen=True)
class Cell:
    """One method with one seed: the unit of work of a study, with its own folder."""

    name: str
    """Folder name, and name on the command line."""
    method: str
    """Row of the table; cells of one method differ only in their seed."""
    kind: Kind
    recipe: Recipe
    seed: int = 0
    shots: int = 0
    fraction: float = 1.0

    @property
    def trains(self) -> bool:
        """Whether the cell is a training run."""
        return self.kind in ("scratch", "finetune")


def plan_cells(recipe: Recipe, design: Design) -> list[Cell]:
    """Returns all cells of a study, the cheapest first.

    Training from scratch uses the recipe's λ; fine-tuning is done with λ = 0 and with that λ, or
    the paper's if it is 0. A fraction f of the labels is trained on for epochs / √f, so that few
    labels still make enough updates; without a number of epochs every cell has that of its rows.

    Raises:
        UsageError: The recipe itself trains from scratch.
    """
    if recipe.base.from_scratch:
        what = "a study trains from scratch as well as from the base"
        raise UsageError(what, cure="Leave --from-scratch out.")
    data = recipe.data.model_copy(update={"extra": {}})
    recipe = recipe.model_copy(update={"data": data})
    cells = [*_untrained_cells(recipe, design), *_trained_cells(recipe, design)]
    return list({cell.name: cell for cell in cells}.values())


def _untrained_cells(recipe: Recipe, design: Design) -> Iterator[Cell]:
    """The majority class and prompting; their recipes leave out how to train."""
    config = recipe.train
    kept = TrainConfig(precision=config.precision, tokens_per_forward=config.tokens_per_forward)
    recipe = recipe.model_copy(update={"train": kept})
    yield Cell("majority", "majority", "majority", recipe)
    default = (0, 4, 32) if recipe.task.prompt else ()
    for count in dict.fromkeys(default if design.shots is None else design.shots):
        for seed in design.seeds if count else (0,):
            # `ask` is the former name of `gptft prompt`; existing studies have such folders.
            name = f"ask-{count}" + (f"-seed-{seed}" if count else "")
            yield Cell(name, f"{count}-shot", "prompt", recipe, seed, count)


def _trained_cells(recipe: Recipe, design: Design) -> Iterator[Cell]:
    coefficient = recipe.train.lm_coefficient
    scratch = override_recipe(recipe, {"base.from_scratch": True, **design.scratch})
    runs = [("scratch", "from scratch", scratch)]
    for value in dict.fromkeys((0.0, coefficient or PAPER_COEFFICIENT)):
        changed = recipe.with_train(lm_coefficient=value)
        runs.append((f"lambda-{value:g}", f"fine-tuned, λ = {value:g}", changed))
    for fraction in sorted(set(design.fractions) - {1.0}):
        name = f"lambda-{coefficient:g}-labels-{fraction:g}"
        method = f"fine-tuned, λ = {coefficient:g}, {100 * fraction:g} % of the labels"
        epochs = recipe.train.epochs and recipe.train.epochs / fraction**0.5
        runs.append((name, method, recipe.with_train(epochs=epochs, fraction=fraction)))
    for name, method, changed in runs:
        kind: Kind = "scratch" if changed.base.from_scratch else "finetune"
        for seed in design.seeds:
            seeded = changed.with_train(seed=seed)
            fraction = seeded.train.fraction
            yield Cell(f"{name}-seed-{seed}", method, kind, seeded, seed, fraction=fraction)


def select_cells(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Returns the cells whose names match any of the globs; all of them if there is no glob.

    Raises UsageError for a glob that matches no cell.
    """
    names = [cell.name for cell in cells]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            cure = f"{suggest(pattern, names)} --list names all of them."
            raise UsageError(f"no cell {pattern!r} in this study", cure=cure)
    chosen = {name for pattern in patterns or ("*",) for name in fnmatch.filter(names, pattern)}
    return [cell for cell in cells if cell.name in chosen]
