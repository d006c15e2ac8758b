"""Token ids of rows for the model in this folder, exactly as gptft makes them."""

import json
from pathlib import Path

from transformers import AutoTokenizer

FOLDER = Path(__file__).parent
TASK = json.loads((FOLDER / "task.json").read_text(encoding="utf-8"))
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


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
