"""Whether bf16 changes scores: the same runs in bf16 and in fp32, seed by seed.

    python -m benchmarks.precision --data ../shared/data/glue

The shipped base on the first 5,000 rows of SST-2, one epoch. Compare the difference between the
two precisions with the spread over seeds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import finetune

SETTINGS = {
    "base.path": "tiny",
    "train.learning_rate": 5e-4,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.max_tokens": 256,
    "train.warmup": 0.1,
    "train.checkpoint_minutes": None,
}
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    """Trains, and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with a copy of GLUE")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--limit", type=int, default=5000, help="rows of every split")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    where = {"data.path": str(options.data.resolve()), "data.limit": options.limit}
    print(f"| seed | {' | '.join(PRECISIONS)} | difference |\n|---|---|---|---|")
    scores: list[list[float]] = []
    for seed in range(options.seeds):
        scores.append([_score(options.task, where, seed, precision) for precision in PRECISIONS])
        print(_row(str(seed), scores[-1], scores[-1][1] - scores[-1][0]), flush=True)
    medians = [statistics.median(column) for column in zip(*scores, strict=True)]
    difference = statistics.median(one[1] - one[0] for one in scores)
    print(_row("median", medians, difference))


def _score(task: str, where: dict[str, object], seed: int, precision: str) -> float:
    """The task's first metric on the evaluation split."""
    changes = {**SETTINGS, **where, "train.seed": seed, "train.precision": precision}
    recipe = finetune.load_recipe(task, changes)
    with tempfile.TemporaryDirectory() as folder:
        result = finetune.train(recipe, Path(folder) / "run")
    by_split = next(iter(result.scores.values()))
    return by_split[recipe.task.metrics[0]]


def _row(name: str, scores: list[float], difference: float) -> str:
    cells = [f"{score:.4f}" for score in scores]
    return f"| {name} | {' | '.join(cells)} | {difference:+.4f} |"


if __name__ == "__main__":
    main()
