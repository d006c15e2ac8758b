"""Compare methods on RTE: majority class, prompting, training from scratch and fine-tuning.

Run: python examples/compare_ways.py --base gpt2                       # data and base from the Hub
     python examples/compare_ways.py --base ./my-gpt2 --data glue      # from folders
"""

import argparse
from pathlib import Path

import finetune
from finetune.comparison import CellFinished, Design, events, read_table
from finetune.comparison.table import write_markdown


def main() -> None:
    """Runs every cell that is not finished, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    parser.add_argument("--data", help="folder with a copy of GLUE; default: the Hub")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--study", type=Path, default=Path("studies/rte"))
    args = parser.parse_args()

    changes = {"base.path": args.base, "train.epochs": args.epochs, "train.max_tokens": 96}
    if args.data:
        changes["data.path"] = args.data
    recipe = finetune.load_recipe("rte", changes)
    design = Design(seeds=tuple(range(args.seeds)), shots=(0, 4))

    for event in events(recipe, args.study, design):
        match event:
            case CellFinished(result, number, cells, reused):
                scores = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
                how = "already done" if reused else f"{result.seconds:.0f} s"
                print(f"{number}/{cells} {result.cell.name}: {scores} ({how})")

    table = read_table(recipe, args.study, design)
    print(write_markdown(table))
    tuned = next(row for row in table.rows if row.kind == "finetune" and row.lm_coefficient)
    scratch = next(row for row in table.rows if row.kind == "scratch")
    pairs = zip(tuned.scores["accuracy"].values, scratch.scores["accuracy"].values, strict=True)
    better = sum(one > other for one, other in pairs)
    print(f"fine-tuning beats training from scratch on {better} of {len(tuned.seeds)} seeds")


if __name__ == "__main__":
    main()
