"""Predicts rows with the model in this folder, one JSON object per line.

    python predict.py rows.jsonl

A row has the fields that task.json names, and "choices" where the task has choices.
Needs transformers and torch; onnxruntime instead of torch if the folder holds a model.onnx.
"""

import fileinput
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

FOLDER = Path(__file__).resolve().parent
TASK = json.loads((FOLDER / "task.json").read_text(encoding="utf-8"))
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def encode(row: dict[str, Any]) -> list[list[int]]:
    """Returns the token ids of each view of a row: start text delimiter text ... extract."""
    rows = [{**row, "choice": choice} for choice in row.get("choices", [""])]
    views = [
        [
            [words + (str(values[name]).strip() if name else "") for words, name in text]
            for text in view
        ]
        for values in rows
        for view in TASK["views"]
    ]
    pieces = [[piece for text in view for piece in text] for view in views]
    known = sorted({piece for view in pieces for piece in view})
    tokens = TOKENIZER(known, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = dict(zip(known, tokens, strict=True))
    # Where a view is too long, its longest texts are cut. A text is cut alike in all views.
    room = [TASK["max_tokens"] - len(view) - 1 for view in views]
    excess = [sum(len(ids[p]) for p in view) - n for view, n in zip(pieces, room, strict=True)]
    for k in sorted(range(len(views)), key=lambda k: (-excess[k], sorted(pieces[k]))):
        while sum(len(ids[piece]) for piece in pieces[k]) > room[k]:
            longest = max(pieces[k], key=lambda piece: (len(ids[piece]), piece))
            ids[longest] = ids[longest][:-1]
    sequences = []
    for view in views:
        sequence = [TASK["start"]]
        for text in view:
            sequence += [*(token for piece in text for token in ids[piece]), TASK["delimiter"]]
        sequences.append([*sequence[:-1], TASK["extract"]])
    return sequences


def pad(rows: list[list[list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, T) token ids and their attention mask, for N rows of at most K views."""
    shape = (len(rows), max(map(len, rows)), max(len(view) for row in rows for view in row))
    ids, mask = np.full(shape, TASK["pad"], np.int64), np.zeros(shape, np.int64)
    for n, row in enumerate(rows):
        for k, view in enumerate(row):
            ids[n, k, : len(view)], mask[n, k, : len(view)] = view, 1
    return ids, mask


def load_model() -> Any:
    """Returns the function that maps ids and mask to (N, C) logits, or (N, K) for choices."""
    if (FOLDER / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(FOLDER / "model.onnx")
        return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel

    if (FOLDER / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        decoder = model.merge_and_unload().base_model
    else:
        decoder = AutoModel.from_pretrained(FOLDER, dtype="auto")
    decoder, head = decoder.eval(), load_file(FOLDER / "head.safetensors")

    @torch.inference_mode()
    def compute(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        flat, present = torch.from_numpy(mask).flatten(0, 1), torch.from_numpy(mask).any(-1)
        states = decoder(input_ids=torch.from_numpy(ids).flatten(0, 1), attention_mask=flat)[0]
        last = states[torch.arange(len(flat)), (flat.sum(1) - 1).clamp(min=0)].float()
        scores, bias = (last @ head["weight"].T).unflatten(0, present.shape), head.get("bias", 0)
        if TASK["choices"]:
            return (scores[..., 0] + bias).masked_fill(~present, -torch.inf).numpy()
        return (scores.sum(1) + bias).numpy()

    return compute


COMPUTE = load_model()


def compute_logits(rows: list[dict[str, Any]], batch_size: int = 8) -> list[list[float]]:
    """Returns the logits of each row: one per class or per choice, or the score."""
    logits = []
    for start in range(0, len(rows), batch_size):
        views = [encode(row) for row in rows[start : start + batch_size]]
        for row, values in zip(views, COMPUTE(*pad(views)).tolist(), strict=True):
            logits.append(values[: len(row)] if TASK["choices"] else values)
    return logits


def predict(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the label (or labels) of each row with the probability of every one, or its score."""
    predictions: list[dict[str, Any]] = []
    for values in compute_logits(rows):
        if TASK["labels"] is None:
            predictions.append({"score": values[0]})
            continue
        if TASK["thresholds"] is not None:
            odds = np.exp(-np.abs(np.array(values)))
            probabilities = (np.where(np.array(values) >= 0, 1, odds) / (1 + odds)).tolist()
            named = dict(zip(TASK["labels"], probabilities, strict=True))
            limits = dict(zip(TASK["labels"], TASK["thresholds"], strict=True))
            labels = [name for name in named if named[name] >= limits[name]]
            predictions.append({"label": labels, "probabilities": named})
            continue
        exponentials = np.exp(np.array(values) - max(values))
        probabilities = (exponentials / exponentials.sum()).tolist()
        named = dict(zip(TASK["labels"], probabilities, strict=False))
        predictions.append({"label": max(named, key=named.__getitem__), "probabilities": named})
    return predictions


if __name__ == "__main__":
    with fileinput.input(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    for prediction in predict(lines):
        sys.stdout.write(json.dumps(prediction, ensure_ascii=False) + "\n")
