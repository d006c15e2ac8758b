"""Rows that need code: a Task with a function that reads them.

Run: python examples/custom_task.py threads.jsonl --base gpt2

From the command line: gptft train --task custom_task:task --set data.train=threads.jsonl ...
"""

import argparse
from pathlib import Path

import finetune
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe, TaskConfig, TrainConfig
from task_formats import Classes, Format, Row, Task


def read(row: Row) -> Row:
    """A thread of messages as what was said before, the last message, and whether it helped.

    {"messages": [{"text": "It hangs."}, {"text": "Restart it."}], "thanks": 3}
    """
    *before, last = row["messages"]
    told = " ".join(message["text"] for message in before)
    return {"told": told, "answer": last["text"], "helped": row.get("thanks", 0) > 0}


task = Task(
    format=Format(views=(("{told}", "{answer}"),)),
    columns={"told": "told", "answer": "answer", "label": "helped"},
    labels=Classes.of({False: "did not", True: "helped"}),
    metrics=("accuracy", "f1"),
    read=read,
)


def main() -> None:
    """Trains on threads, and judges one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("threads", type=Path, help="a JSONL file")
    parser.add_argument("--base", default="gpt2", help="a hub id, a folder, or tiny")
    parser.add_argument("--run", type=Path, default=Path("runs/threads"))
    said = parser.parse_args()

    recipe = Recipe(
        task=TaskConfig.from_task(task),
        base=BaseConfig(path=said.base),
        data=DataConfig(train=str(said.threads), evaluate=None),
        train=TrainConfig(max_tokens=96, batch_size=8),
    )
    finetune.train(recipe, said.run, task=task, overwrite=True)

    # The code is no part of a run: whoever loads it brings the task along.
    predictor = finetune.load(said.run, task=task)
    print("on what it has learned from:", predictor.evaluate("train"))
    print(predictor.predict([{"messages": [{"text": "It hangs."}, {"text": "Restart it."}]}]))


if __name__ == "__main__":
    main()
