"""Whether bf16 costs anything in scores: the same runs in bf16 and in fp32, seed by seed.

    python -m benchmarks.precision --data ../shared/data/glue

The shipped base on the first 5,000 rows of SST-2, one epoch. Bad luck of a seed is the same in
both: what counts is the difference of the two, against the spread of either.
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
    """Trains, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with a copy of GLUE")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--limit", type=int, default=5000, help="rows of every split")
    parser.add_argument("--seeds", type=int, default=5)
    said = parser.parse_args()
    where = {"data.path": str(said.data.resolve()), "data.limit": said.limit}
    print(f"| seed | {' | '.join(PRECISIONS)} | difference |\n|---|---|---|---|")
    found: list[list[float]] = []
    for seed in range(said.seeds):
        found.append([_score(said.task, where, seed, precision) for precision in PRECISIONS])
        print(_row(str(seed), found[-1], found[-1][1] - found[-1][0]), flush=True)
    medians = [statistics.median(column) for column in zip(*found, strict=True)]
    difference = statistics.median(one[1] - one[0] for one in found)
    print(_row("median", medians, difference))


def _score(task: str, where: dict[str, object], seed: int, precision: str) -> float:
    """The task's first metric on the evaluation split."""
    changes = {**SETTINGS, **where, "train.seed": seed, "train.precision": precision}
    recipe = finetune.load_recipe(task, changes)
    with tempfile.TemporaryDirectory() as folder:
        result = finetune.train(recipe, Path(folder) / "run")
    scores = next(iter(result.scores.values()))
    return scores[recipe.task.metrics[0]]


def _row(name: str, scores: list[float], difference: float) -> str:
    cells = [f"{score:.4f}" for score in scores]
    return f"| {name} | {' | '.join(cells)} | {difference:+.4f} |"


if __name__ == "__main__":
    main()
