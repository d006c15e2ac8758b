"""A Task whose rows are read by a Python function.

Run: python examples/custom_task.py threads.jsonl --base gpt2

From the command line: gptft train --task custom_task:task --set data.train=threads.jsonl ...
"""

import argparse
from pathlib import Path

import finetune
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe, TaskConfig, TrainConfig
from task_formats import Classes, Format, Row, Task


def read(row: Row) -> Row:
    """Splits a thread into its first messages, its last message, and whether that helped.

    {"messages": [{"text": "It hangs."}, {"text": "Restart it."}], "thanks": 3}
    """
    *earlier, last = row["messages"]
    question = " ".join(message["text"] for message in earlier)
    return {"question": question, "answer": last["text"], "helped": row.get("thanks", 0) > 0}


task = Task(
    format=Format(views=(("{question}", "{answer}"),)),
    columns={"question": "question", "answer": "answer", "label": "helped"},
    labels=Classes.of({False: "did not", True: "helped"}),
    metrics=("accuracy", "f1"),
    convert_row=read,
)


def main() -> None:
    """Trains on threads, and predicts for a new one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("threads", type=Path, help="a JSONL file")
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    parser.add_argument("--run", type=Path, default=Path("runs/threads"))
    args = parser.parse_args()

    recipe = Recipe(
        task=TaskConfig.from_task(task),
        base=BaseConfig(path=args.base),
        data=DataConfig(train=str(args.threads), evaluate=None),
        train=TrainConfig(max_tokens=96, batch_size=8),
    )
    finetune.train(recipe, args.run, task=task, overwrite=True)

    # A run does not contain code, so loading it needs the task.
    predictor = finetune.load(args.run, task=task)
    print("on the training rows:", predictor.evaluate("train"))
    print(predictor.predict([{"messages": [{"text": "It hangs."}, {"text": "Restart it."}]}]))


if __name__ == "__main__":
    main()
