"""Loads an exported folder without gptft and computes logits: check.py FOLDER FORMAT IN OUT.

IN holds the rows: lists of one or two texts for the classification formats, else the fields by
name. OUT gets {"logits": a list per row, "tokens": for the classification formats the ids of each
row}.
"""

import json
import runpy
import sys
from typing import Any

BATCH = 8


def classify(folder: str, model_class: str, rows: list[list[str]]) -> dict[str, Any]:
    """Logits at the last token, in padded batches, and the token ids."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, model_class).from_pretrained(folder, dtype="auto").eval()
    logits: list[list[float]] = []
    tokens: list[list[int]] = []
    for start in range(0, len(rows), BATCH):
        texts = map(list, zip(*rows[start : start + BATCH], strict=True))
        batch = tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            values = model(**batch).logits.float()
        lengths = batch["attention_mask"].sum(1).tolist()
        if values.dim() == 3:  # one per token
            values = torch.stack([row[n - 1] for row, n in zip(values, lengths, strict=True)])
        logits += values.tolist()
        ids = batch["input_ids"].tolist()
        tokens += [row[:n] for row, n in zip(ids, lengths, strict=True)]
    return {"logits": logits, "tokens": tokens}


def compute_logits(folder: str, format: str, rows: list[Any]) -> dict[str, Any]:
    """Logits of the rows with the folder's model, and their token ids."""
    if format == "sequence-classification":
        return classify(folder, "AutoModelForSequenceClassification", rows)
    if format == "token-classification":
        return classify(folder, "AutoModelForTokenClassification", rows)
    compute = runpy.run_path(f"{folder}/predict.py")["compute_logits"]
    return {"logits": [compute(row).tolist() for row in rows]}


def main(folder: str, format: str, source: str, target: str) -> None:
    """Writes the logits of the rows in `source` to `target`."""
    # Importing gptft raises an ImportError: who uses the folder does not have it.
    sys.modules |= dict.fromkeys(["finetune", "task_formats"])  # type: ignore[arg-type]
    sys.path.insert(0, folder)  # where `python FOLDER/predict.py` finds encode.py
    with open(source, encoding="utf-8") as file:
        result = compute_logits(folder, format, json.load(file))
    with open(target, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
