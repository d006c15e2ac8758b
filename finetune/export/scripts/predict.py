"""Predicts rows with the model in this folder: python predict.py rows.jsonl.

A row is a JSON object with the fields in task.json, and "choices" where the task has choices.
"""

import fileinput
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

FOLDER = Path(__file__).parent
TASK = json.loads((FOLDER / "task.json").read_text(encoding="utf-8"))
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)
DECODER = AutoModel.from_pretrained(FOLDER, dtype="auto").eval()
HEAD = load_file(FOLDER / "head.safetensors")


def encode(row: dict) -> list[list[int]]:
    """Returns the token ids of each view: its texts, with a special token after each."""
    views = []
    for choice in row["choices"] if TASK["choices"] else [""]:
        fields = {**row, "": "", "choice": choice}
        for view in TASK["views"]:
            views.append([(words + str(fields[name]).strip(), mark) for words, name, mark in view])
    texts = {text for view in views for text, _ in view}
    ids = {text: TOKENIZER(text, **TASK["tokenize"])["input_ids"] for text in texts}

    def excess(view: list[tuple[str, list[int]]]) -> int:
        return sum(len(ids[text]) + len(mark) for text, mark in view) - TASK["max_tokens"]

    # Where a view is too long, its longest texts are cut. A text is cut alike in all views.
    for view in sorted(views, key=lambda view: (-excess(view), sorted(text for text, _ in view))):
        while excess(view) > 0:
            ids[max((text for text, _ in view), key=lambda text: (len(ids[text]), text))].pop()
    return [[token for text, mark in view for token in ids[text] + mark] for view in views]


@torch.inference_mode()
def compute_logits(row: dict) -> torch.Tensor:
    """Returns a logit for each class or choice, or the score."""
    states = torch.stack([DECODER(torch.tensor([view]))[0][0, -1] for view in encode(row)])
    outputs = states.float() @ HEAD["weight"].T
    return (outputs[:, 0] if TASK["choices"] else outputs.sum(0)) + HEAD.get("bias", 0)


def predict(row: dict) -> dict:
    """Returns the label or labels of a row and the probability of every label, or its score."""
    logits = compute_logits(row).double()
    if not TASK["labels"]:
        return {"score": logits.item()}
    probabilities = logits.sigmoid() if TASK["thresholds"] else logits.softmax(0)
    named = dict(zip(TASK["labels"], probabilities.tolist(), strict=False))
    above = [name for name, threshold in TASK["thresholds"].items() if named[name] >= threshold]
    label = above if TASK["thresholds"] else max(named, key=lambda name: named[name])
    return {"label": label, "probabilities": named}


if __name__ == "__main__":
    with fileinput.input(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            print(json.dumps(predict(json.loads(line)), ensure_ascii=False))
