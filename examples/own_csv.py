"""Train on your own table and label another one, without a recipe file.

Run: python examples/own_csv.py reviews.csv new.csv labelled.csv --text review --label stars
"""

import argparse
import csv
from pathlib import Path

import finetune
from finetune.data import read_rows
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe, TaskConfig, TrainConfig


def main() -> None:
    """Trains on one file (CSV, TSV, JSONL or Parquet) and labels the rows of another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="rows with a text and a label")
    parser.add_argument("new", type=Path, help="rows with a text")
    parser.add_argument("out", type=Path, help="CSV file to write")
    parser.add_argument("--held-out", type=Path, help="labelled rows that select the best model")
    parser.add_argument("--text", default="text", help="column of the text")
    parser.add_argument("--label", default="label", help="column of the label")
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    parser.add_argument("--run", type=Path, default=Path("runs/own"))
    args = parser.parse_args()

    labels = sorted({str(row[args.label]) for _, row in read_rows(args.train)})
    recipe = Recipe(
        task=TaskConfig(
            format="classification",
            columns={"text": args.text, "label": args.label},
            labels=labels,
            metrics=("accuracy", "macro_f1"),
        ),
        base=BaseConfig(path=args.base),
        data=DataConfig(train=str(args.train), evaluate=args.held_out and str(args.held_out)),
        train=TrainConfig(max_tokens=96, batch_size=8),
    )
    result = finetune.train(recipe, args.run, overwrite=True)
    print(f"trained {result.updates} updates; scores: {result.scores}")

    predictor = finetune.load(args.run)
    rows = [row for _, row in read_rows(args.new)]
    with open(args.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([args.text, args.label, "probability"])
        for row, prediction in zip(rows, predictor.predict(rows), strict=True):
            writer.writerow([row[args.text], prediction.label, max(prediction.scores)])
    print(f"labelled: {args.out}")


if __name__ == "__main__":
    main()
