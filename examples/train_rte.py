"""Train on RTE and print progress: every update and evaluation is an event.

Run: python examples/train_rte.py --base gpt2                   # data and base from the Hub
     python examples/train_rte.py --base ./my-gpt2 --data glue  # local folders, no network
"""

import argparse
from pathlib import Path

import finetune
from finetune.training.events import Evaluated, Finished, Notice, Started
from finetune.training.loop import Step


def main() -> None:
    """Trains, prints the events, and predicts one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    parser.add_argument("--data", help="folder with a copy of GLUE; default: the Hub")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/rte"))
    args = parser.parse_args()

    changes = {"base.path": args.base, "train.epochs": args.epochs, "train.max_tokens": 96}
    if args.data:
        changes["data.path"] = args.data
    recipe = finetune.load_recipe("rte", changes)

    for event in finetune.events(recipe, args.run, resume=True):
        match event:
            case Notice(text):
                print(text)
            case Started():
                print(f"{event.examples} examples, {event.updates} updates on {event.device}")
            case Step() if event.number % 10 == 1:
                print(f"update {event.number}: loss {event.losses.total:.3f}")
            case Evaluated():
                print(f"epoch {event.epoch:g}: {event.scores}{' (best)' if event.best else ''}")
            case Finished(result):
                print(f"best after update {result.update}: {result.scores}")

    predictor = finetune.load(args.run)
    row = {"sentence1": "A man rides a horse over wet grass.", "sentence2": "It has rained."}
    (prediction,) = predictor.predict([row])
    names = predictor.task.labels.names
    probabilities = ", ".join(
        f"{name} {p:.2f}" for name, p in zip(names, prediction.scores, strict=True)
    )
    print(f"{row['sentence2']} {prediction.label} ({probabilities})")


if __name__ == "__main__":
    main()
