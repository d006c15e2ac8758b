"""Train RTE and watch it: every update and evaluation is an event that the program consumes.

Run: python examples/train_rte.py --base gpt2                   # rows and base from the hub
     python examples/train_rte.py --base ./my-gpt2 --data glue  # from folders, without a network
"""

import argparse
from pathlib import Path

import finetune
from finetune.training.events import Evaluated, Finished, Notice, Started
from finetune.training.loop import Step


def main() -> None:
    """Trains, prints what happens, and answers one question with the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a hub id, a folder, or tiny")
    parser.add_argument("--data", help="a folder with a copy of GLUE; else the hub's")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--run", type=Path, default=Path("runs/rte"))
    said = parser.parse_args()

    changes = {"base.path": said.base, "train.epochs": said.epochs, "train.max_tokens": 96}
    if said.data:
        changes["data.path"] = said.data
    recipe = finetune.load_recipe("rte", changes)

    for event in finetune.events(recipe, said.run, resume=True):
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
                print(f"the state after update {result.update} is the best: {result.scores}")

    predictor = finetune.load(said.run)
    row = {"sentence1": "A man rides a horse over wet grass.", "sentence2": "It has rained."}
    (prediction,) = predictor.predict([row])
    names = predictor.task.labels.names
    chances = ", ".join(f"{name} {p:.2f}" for name, p in zip(names, prediction.scores, strict=True))
    print(f"{row['sentence2']} {prediction.label} ({chances})")


if __name__ == "__main__":
    main()
