"""Predicts rows with the model in this folder: python predict.py rows.jsonl.

A row is a JSON object with the fields in task.json, and "choices" where the task has choices.
"""

import fileinput
import json

import torch
from encode import FOLDER, TASK, encode
from safetensors.torch import load_file
from transformers import AutoModel

DECODER = AutoModel.from_pretrained(FOLDER, dtype="auto").eval()
HEAD = load_file(FOLDER / "head.safetensors")


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
