"""Train on a table of your own and label another, without a recipe file.

Run: python examples/own_csv.py reviews.csv new.csv labelled.csv --text review --label stars
"""

import argparse
import csv
from pathlib import Path

import finetune
from finetune.data import read_rows
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe, TaskConfig, TrainConfig


def main() -> None:
    """Learns from one file (CSV, TSV, JSONL or Parquet) and labels the rows of another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="rows with a text and a label")
    parser.add_argument("new", type=Path, help="rows with a text")
    parser.add_argument("out", type=Path, help="a CSV file to write")
    parser.add_argument("--held-out", type=Path, help="labelled rows to choose the best state by")
    parser.add_argument("--text", default="text", help="the column of the text")
    parser.add_argument("--label", default="label", help="the column of the label")
    parser.add_argument("--base", default="gpt2", help="a hub id, a folder, or tiny")
    parser.add_argument("--run", type=Path, default=Path("runs/own"))
    said = parser.parse_args()

    labels = sorted({str(row[said.label]) for _, row in read_rows(said.train)})
    recipe = Recipe(
        task=TaskConfig(
            format="classification",
            columns={"text": said.text, "label": said.label},
            labels=labels,
            metrics=("accuracy", "macro_f1"),
        ),
        base=BaseConfig(path=said.base),
        data=DataConfig(train=str(said.train), evaluate=said.held_out and str(said.held_out)),
        train=TrainConfig(max_tokens=96, batch_size=8),
    )
    result = finetune.train(recipe, said.run, overwrite=True)
    print(f"trained {result.updates} updates; scores: {result.scores}")

    predictor = finetune.load(said.run)
    rows = (row for _, row in read_rows(said.new))
    with open(said.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([said.text, said.label, "probability"])
        for row, prediction in predictor.stream(rows):  # a window of rows at a time
            writer.writerow([row[said.text], prediction.label, max(prediction.scores)])
    print(f"labelled: {said.out}")


if __name__ == "__main__":
    main()
