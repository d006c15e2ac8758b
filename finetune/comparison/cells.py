"""The cells of a study: which runs and questions one table of a task is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from finetune.recipe.loading import override_recipe
from finetune.recipe.schema import Recipe, TrainConfig
from task_formats import UsageError, suggest

SHOTS = (0, 4, 32)

Work = Literal["majority", "ask", "train"]


@dataclass(frozen=True)
class Design:
    """What is compared."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each draws the solved examples of a few-shot cell, or head, order, dropout and the part of
    the labels of a trained one."""
    shots: tuple[int, ...] | None = None
    """Solved examples before a question; without it 0, 4 and 32 where the task has a prompt."""
    fractions: tuple[float, ...] = ()
    """Parts of the labels to fine-tune on, besides all of them."""
    scratch: Mapping[str, Any] = field(default_factory=dict)
    """Dotted recipe values for the runs from scratch alone, {"train.learning_rate": 1e-3}."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UsageError("a study needs a seed", where="seeds")
        for fraction in self.fractions:
            if not 0 < fraction <= 1:
                raise UsageError(
                    f"{fraction:g} is no part of the labels",
                    where="fractions",
                    cure="Give numbers over 0 and up to 1.",
                )
        for key in ("train.seed", "base.from_scratch"):
            if key in self.scratch:
                raise UsageError(
                    f"{key} is not for runs from scratch alone: the study itself says what it is",
                    where="scratch",
                    cure="Leave it out; the seeds are those of all runs.",
                )


@dataclass(frozen=True)
class Cell:
    """One run, or one round of questions: the smallest part of a study, in a folder of its own."""

    name: str
    """Of the folder, and on the command line."""
    arm: str
    """The line of the table; the cells of an arm differ in their seed alone."""
    work: Work
    recipe: Recipe
    seed: int = 0
    shots: int = 0
    fraction: float = 1.0

    @property
    def tuned(self) -> bool:
        """Whether it fine-tunes the base: what the curve over labels is made of."""
        return self.work == "train" and not self.recipe.base.from_scratch


def plan_cells(recipe: Recipe, design: Design) -> list[Cell]:
    """All cells of a study, the cheap ones first.

    Runs from scratch have the λ of the recipe; fine-tuning has λ = 0 and that one. A part f of
    the labels is trained on for epochs / √f, so that few labels still make some updates.
    """
    if recipe.base.from_scratch:
        raise UsageError(
            "a study trains from scratch as well as from the base",
            where="base.from_scratch",
            cure="Leave --from-scratch out.",
        )
    data = recipe.data.model_copy(update={"extra": {}})
    recipe = recipe.model_copy(update={"data": data})
    cells = [*_untrained(recipe, design), *_trained(recipe, design)]
    return list({cell.name: cell for cell in cells}.values())


def _untrained(recipe: Recipe, design: Design) -> Iterator[Cell]:
    """What does not depend on how the recipe trains, and so does not change with it."""
    part = recipe.train
    kept = TrainConfig(precision=part.precision, tokens_per_forward=part.tokens_per_forward)
    recipe = recipe.model_copy(update={"train": kept})
    yield Cell("majority", "majority", "majority", recipe)
    shots = design.shots
    if shots is None:
        shots = SHOTS if recipe.task.prompt else ()
    for count in dict.fromkeys(shots):
        for seed in design.seeds if count else (0,):
            name = f"ask-{count}" + (f"-seed-{seed}" if count else "")
            yield Cell(name, f"{count}-shot", "ask", recipe, seed, count)


def _trained(recipe: Recipe, design: Design) -> Iterator[Cell]:
    scratch = override_recipe(recipe, {"base.from_scratch": True, **design.scratch})
    for seed in design.seeds:
        yield _train(scratch, "scratch", "from scratch", seed)
    coefficient = recipe.train.lm_coefficient
    for value in dict.fromkeys((0.0, coefficient)):
        for seed in design.seeds:
            yield _train(_with(recipe, lm_coefficient=value), *_tuned(value), seed)
    for fraction in sorted(set(design.fractions) - {1.0}):
        part = _with(recipe, epochs=recipe.train.epochs / fraction**0.5, fraction=fraction)
        name, arm = _tuned(coefficient)
        name, arm = f"{name}-labels-{fraction:g}", f"{arm}, {100 * fraction:g} % of the labels"
        for seed in design.seeds:
            yield _train(part, name, arm, seed)


def _tuned(coefficient: float) -> tuple[str, str]:
    return f"lambda-{coefficient:g}", f"fine-tuned, λ = {coefficient:g}"


def _train(recipe: Recipe, name: str, arm: str, seed: int) -> Cell:
    recipe = _with(recipe, seed=seed)
    return Cell(f"{name}-seed-{seed}", arm, "train", recipe, seed, fraction=recipe.train.fraction)


def _with(recipe: Recipe, **values: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=values)})


def select_cells(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells that any of the names or globs means; all without one.

    Raises UsageError for a pattern that means none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            names = [cell.name for cell in cells]
            raise UsageError(
                f"no cell {pattern!r} in this study",
                where="only",
                cure=f"{suggest(pattern, names)} --list names all of them.",
            )
    return [
        cell
        for cell in cells
        if not patterns or any(fnmatchcase(cell.name, pattern) for pattern in patterns)
    ]
