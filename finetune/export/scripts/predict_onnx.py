"""Predicts rows with the model in this folder: python predict.py rows.jsonl.

A row is a JSON object with the fields in task.json, and "choices" where the task has choices.
"""

import fileinput
import json

import numpy as np
from encode import FOLDER, TASK, encode
from onnxruntime import InferenceSession

SESSION = InferenceSession(FOLDER / "model.onnx")


def compute_logits(row: dict) -> np.ndarray:
    """Returns a logit for each class or choice, or the score."""
    views = encode(row)
    length = max(map(len, views))
    ids = np.array([[view + [TASK["pad"]] * (length - len(view)) for view in views]])
    mask = np.array([[[1] * len(view) + [0] * (length - len(view)) for view in views]])
    return SESSION.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0][0]


def predict(row: dict) -> dict:
    """Returns the label or labels of a row and the probability of every label, or its score."""
    logits = compute_logits(row).astype(float)
    if not TASK["labels"]:
        return {"score": logits.item()}
    odds = np.exp(logits - logits.max())
    probabilities = 1 / (1 + np.exp(-logits)) if TASK["thresholds"] else odds / odds.sum()
    named = dict(zip(TASK["labels"], probabilities.tolist(), strict=False))
    above = [name for name, threshold in TASK["thresholds"].items() if named[name] >= threshold]
    label = above if TASK["thresholds"] else max(named, key=lambda name: named[name])
    return {"label": label, "probabilities": named}


if __name__ == "__main__":
    with fileinput.input(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            print(json.dumps(predict(json.loads(line)), ensure_ascii=False))
