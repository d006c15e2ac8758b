"""Files in the shape of public data sets: `gptft new` and `gptft train` work without an edit.

The texts are made up; columns, labels and layouts are those of the files that people download.
"""

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetune.cli import main
from finetune.data import open_rows, write_rows
from finetune.recipe.loading import load_recipe

ROWS = 48
LETTERS = "ABCDE"
EMOTIONS = ("admiration", "amusement", "anger", "annoyance", "approval", "neutral")


def text(n: int) -> str:
    return f"{('please', 'why', 'how')[n % 3]} can I see item number {n} of my {n % 7} orders?"


def choices(n: int, count: int) -> list[str]:
    return [f"the {word} of {n}" for word in ("sun", "sea", "wind", "moon", "rain")[:count]]


class Shape(NamedTuple):
    """Rows of one data set, and the recipe that they should give."""

    file: str
    rows: list[dict[str, Any]] | str
    format: str
    columns: dict[str, Any]
    labels: int
    metric: str = "accuracy"
    header: bool | None = None


def banking77() -> Shape:
    """train.csv of PolyAI: sorted by intent."""
    rows = [{"text": text(n), "category": f"intent {n * 8 // ROWS}"} for n in range(ROWS)]
    return Shape("train.csv", rows, "classification", {"text": "text", "label": "category"}, 8)


def banking77_hub() -> Shape:
    """The copy with numbers for the intents."""
    rows = [{"text": text(n), "label": n * 8 // ROWS} for n in range(ROWS)]
    return Shape("train.csv", rows, "classification", {"text": "text", "label": "label"}, 8)


def clinc150() -> Shape:
    """data_full.json: splits of [text, intent], out-of-scope queries apart."""
    rows = [[text(n), ("transfer", "translate", "timer")[n % 3]] for n in range(ROWS)]
    names = {"oos_val": rows[:3], "val": rows[:9], "train": rows, "oos_train": rows[:3]}
    content = json.dumps({**names, "test": rows[:9]})
    columns = {"text": "column_1", "label": "column_2"}
    return Shape("data_full.json", content, "classification", columns, 3)


def trec() -> Shape:
    """The hub's copy: a coarse and a fine label."""
    rows = [{"text": text(n), "coarse_label": n % 3, "fine_label": n % 12} for n in range(ROWS)]
    return Shape("train.csv", rows, "classification", {"text": "text", "label": "coarse_label"}, 3)


_SICK = {"premise": "sentence_A", "hypothesis": "sentence_B"}


def sick() -> Shape:
    """SICK.txt as .tsv: labels of entailment, scores of relatedness, and where the pair is from."""
    words = ("NEUTRAL", "ENTAILMENT", "CONTRADICTION")
    rows = [
        {
            "pair_ID": n,
            "sentence_A": text(n),
            "sentence_B": text(n + 1),
            "entailment_label": words[n % 3],
            "relatedness_score": 1 + n % 41 / 10,
            "entailment_AB": f"A_{words[n % 3].lower()}_B",
            "entailment_BA": f"B_{words[n % 2].lower()}_A",
            "sentence_A_original": text(n + 2),
            "sentence_B_original": text(n + 3),
            "sentence_A_dataset": "FLICKR",
            "sentence_B_dataset": "FLICKR",
            "SemEval_set": ("TRAIN", "TRIAL", "TEST")[n % 3],
        }
        for n in range(ROWS)
    ]
    return Shape("SICK.tsv", rows, "entailment", {**_SICK, "label": "entailment_label"}, 3)


def openbookqa() -> Shape:
    """train.jsonl of AllenAI: choices as a list of objects inside the question."""
    rows = [
        {
            "id": f"7-{n}",
            "question": {
                "stem": text(n),
                "choices": [
                    {"text": choice, "label": letter}
                    for choice, letter in zip(choices(n, 4), LETTERS, strict=False)
                ],
            },
            "answerKey": LETTERS[n % 4],
        }
        for n in range(ROWS)
    ]
    columns = {"context": "question.stem", "choices": "question.choices.text"}
    return Shape("train.jsonl", rows, "multiple_choice", {**columns, "label": "answerKey"}, 4)


def commonsenseqa() -> Shape:
    """The hub's copy: a concept, and choices as two lists in an object."""
    rows = [
        {
            "id": f"{n:032x}",
            "question": text(n),
            "question_concept": "punishing",
            "choices": {"label": list(LETTERS), "text": choices(n, 5)},
            "answerKey": LETTERS[n % 5],
        }
        for n in range(ROWS)
    ]
    columns = {"context": "question", "choices": "choices.text", "label": "answerKey"}
    return Shape("train.jsonl", rows, "multiple_choice", columns, 5)


def goemotions() -> Shape:
    """train.tsv of Google: no header; numbers of several emotions, separated by commas."""
    several = cycle(("27", "2", "2,27", "0,1", "1"))
    lines = "".join(f"{text(n)}\t{next(several)}\teebbqe{n}\n" for n in range(ROWS))
    columns = {"text": "column_1", "label": "column_2"}
    return Shape("train.tsv", lines, "classification", columns, 4, "micro_f1", False)


def goemotions_flags() -> Shape:
    """goemotions_1.csv: a column of zeros and ones for every emotion, and much else."""
    rows = [
        {"text": text(n), "id": f"e{n}", "author": "someone", "created_utc": 1.5e9 + n}
        | {"rater_id": n % 5, "example_very_unclear": False}
        | {name: int(n % len(EMOTIONS) == k) for k, name in enumerate(EMOTIONS)}
        for n in range(ROWS)
    ]
    columns = {"text": "text", "label": EMOTIONS}
    return Shape("emotions.csv", rows, "classification", columns, 6, "micro_f1")


SHAPES: tuple[Callable[[], Shape], ...] = (
    banking77,
    banking77_hub,
    clinc150,
    trec,
    sick,
    openbookqa,
    commonsenseqa,
    goemotions,
    goemotions_flags,
)
QUICK = ("clinc150", "goemotions")


def write(folder: Path, shape: Shape) -> Path:
    path = folder / shape.file
    if isinstance(shape.rows, str):
        path.write_text(shape.rows)
    else:
        with write_rows(path, list(shape.rows[0])) as sink:
            for row in shape.rows:
                sink.write(row)
    return path


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_new_finds_format_columns_and_labels(make, tmp_path):
    shape = make()
    path, target = write(tmp_path, shape), tmp_path / "new.yaml"
    assert main(["new", str(path), "-o", str(target)]) == 0
    recipe = load_recipe(target)
    assert recipe.task.format == shape.format
    assert recipe.task.columns == shape.columns
    assert len(recipe.task.build().labels.names) == shape.labels
    assert recipe.task.metrics[0] == shape.metric
    data = recipe.data
    assert data.header == shape.header
    assert (data.evaluate is not None) == (shape.file == "data_full.json")
    task = recipe.task.build()
    examples = [task.example(row, "x") for _, row in open_rows(data, data.train)]
    assert len(examples) == ROWS


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=() if make.__name__ in QUICK else pytest.mark.slow)
        for make in SHAPES
    ],
    ids=lambda make: make.__name__,
)
def test_what_new_writes_is_trained(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, make())
    assert main(["new", path.name, "-o", "task.yaml"]) == 0
    assert main(["train", "--task", "task.yaml", "--base", "tiny", "--epochs", "1"]) == 0
    scores = json.loads((tmp_path / "runs" / "task" / "result.json").read_text())["scores"]
    assert bool(scores) == (path.name == "data_full.json")
