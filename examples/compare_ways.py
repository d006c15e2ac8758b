"""Compare ways to do RTE: guessing, asking, training from scratch, and fine-tuning, twice.

Run: python examples/compare_ways.py --base gpt2                       # rows and base from the hub
     python examples/compare_ways.py --base ./my-gpt2 --data glue      # from folders
"""

import argparse
from pathlib import Path

import finetune
from finetune.comparison import CellFinished, Design, events, read_table
from finetune.comparison.table import write_markdown


def main() -> None:
    """Does every cell that is not done yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a hub id, a folder, or tiny")
    parser.add_argument("--data", help="a folder with a copy of GLUE; else the hub's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--study", type=Path, default=Path("studies/rte"))
    said = parser.parse_args()

    changes = {"base.path": said.base, "train.epochs": said.epochs, "train.max_tokens": 96}
    if said.data:
        changes["data.path"] = said.data
    recipe = finetune.load_recipe("rte", changes)
    design = Design(seeds=tuple(range(said.seeds)), shots=(0, 4))

    for event in events(recipe, said.study, design):
        match event:
            case CellFinished(result, number, cells, reused):
                scores = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
                how = "already done" if reused else f"{result.seconds:.0f} s"
                print(f"{number}/{cells} {result.cell.name}: {scores} ({how})")

    table = read_table(recipe, said.study, design)
    print(write_markdown(table))
    tuned = next(row for row in table.rows if row.kind == "finetune" and row.lm_coefficient)
    scratch = next(row for row in table.rows if row.kind == "scratch")
    pairs = zip(tuned.scores["accuracy"].values, scratch.scores["accuracy"].values, strict=True)
    ahead = sum(one > other for one, other in pairs)
    print(f"fine-tuning is ahead of from scratch with {ahead} of {len(tuned.seeds)} seeds")


if __name__ == "__main__":
    main()
