"""A summary of RACE: accuracy on the questions of middle schools, of high schools, and on all."""

from typing import NamedTuple

from finetune.data.known_datasets import normalize_name
from finetune.evaluation.predictor import Predictor
from finetune.recipe.schema import DataConfig, Recipe

LEVELS = ("middle", "high")


class LevelScore(NamedTuple):
    """The accuracy on the questions of one level, or on all."""

    level: str
    rows: int
    accuracy: float


def is_race(recipe: Recipe) -> bool:
    """Whether a run was trained on RACE, or on one of its levels."""
    name = normalize_name(recipe.data.name or "")
    return name in ("all", *LEVELS) and "article" in recipe.task.columns


def summarize_race(predictor: Predictor, data: DataConfig, split: str = "test") -> list[LevelScore]:
    """Evaluates a run on both levels of a split.

    Args:
        predictor: The run.
        data: Where RACE is.
        split: The split of both levels.

    Returns:
        The accuracy of each level, and of all questions together.
    """
    scores = []
    for level in LEVELS:
        of_level = data.model_copy(update={"name": level})
        evaluation = predictor.evaluate_split(split, of_level)
        rows = len(evaluation.split.examples)
        scores.append(LevelScore(level, rows, evaluation.result.scores["accuracy"]))
    rows = sum(score.rows for score in scores)
    correct = sum(score.rows * score.accuracy for score in scores)
    return [*scores, LevelScore("all", rows, correct / rows)]
