"""What `gptft doctor` finds in rows, and what it does not mistake for a problem."""

import random

import pytest

from finetune.data.checks import Finding, check_splits
from finetune.data.examples import LocatedExample, build_examples
from finetune.data.rows import locate_rows
from task_formats import FORMATS, Classes, Range, Task

TASK = Task(FORMATS["classification"], {"text": "text", "label": "label"}, Classes.of([*"abc"]))


def make(count: int, *, seed: int = 0, **columns) -> list[dict]:
    """Rows with different texts and the three labels in a random order."""
    labels = ([*"abc"] * count)[:count]
    random.Random(seed).shuffle(labels)
    made = [{"text": f"text {seed}-{n}", "label": label} for n, label in enumerate(labels)]
    return [
        {**row, **{name: column(n, row) for name, column in columns.items()}}
        for n, row in enumerate(made)
    ]


def problems(task: Task = TASK, **splits: list[dict]) -> list[tuple[str, str]]:
    return [(one.subject, one.text) for one in findings(task, **splits) if one.is_problem]


def findings(task: Task = TASK, **splits: list[dict]) -> list[Finding]:
    def items(name: str, rows: list[dict]) -> list[LocatedExample]:
        labelled = name != "predict"
        return list(build_examples(task, locate_rows(rows, name), name, labelled=labelled))

    return list(check_splits(task, {name: items(name, rows) for name, rows in splits.items()}))


def test_clean_rows_have_no_problem():
    columns = {"id": lambda n, row: f"row-{n}", "length": lambda n, row: len(row["text"])}
    rows = {"train": make(60, **columns), "evaluate": make(30, seed=1, **columns)}
    assert not problems(**rows)
    [counts] = [one.text for one in findings(**rows) if one.subject == "evaluate"]
    assert counts == "labels: a 10, b 10, c 10" or sorted(counts[8:].split(", ")) == [
        "a 10", "b 10", "c 10",
    ]  # fmt: skip


def test_a_split_of_one_class_and_a_missing_and_a_rare_class_are_found():
    train = [row for row in make(60) if row["label"] != "c"] + [{"text": "x", "label": "c"}]
    random.Random(1).shuffle(train)
    assert problems(train=train) == [("train", "fewer than 5 rows with the label 'c'")]
    one = [row for row in make(60) if row["label"] == "a"]
    assert problems(evaluate=one) == [("evaluate", "all rows have one label")]
    two = [row for row in make(60) if row["label"] != "b"]
    assert problems(train=two, evaluate=make(60, seed=1)) == [
        ("train", "no row has the label 'b'"),
        ("evaluate", "train has no row with the label 'b'"),
    ]


def test_repeated_texts_and_contradicting_labels_are_found():
    rows = make(60)
    few = [*rows, {**rows[0], "text": rows[0]["text"].upper() + " "}]
    assert not problems(train=few)
    assert "1 rows (1.6%) repeat the texts of another" in [one.text for one in findings(train=few)]
    other = next(label for label in "abc" if label != rows[0]["label"])
    [(split, text)] = problems(train=[*rows, {**rows[0], "label": other}])
    assert split == "train"
    assert text == "1 texts occur with different labels, such as train/0 and train/60"
    many = [*rows, *rows[:20]]
    [(_, text)] = problems(train=many)
    assert text.startswith("20 rows (25.0%)")


def test_rows_that_are_also_in_train_are_found():
    train, held_out = make(60), make(30, seed=1)
    held_out[4] = {**train[7], "text": f" {train[7]['text']}"}
    [(split, text)] = problems(train=train, evaluate=held_out)
    assert (split, text) == ("evaluate", "1 rows (3.3%) are also in train, such as evaluate/4")


def test_rows_sorted_by_label_are_found():
    rows = sorted(make(60), key=lambda row: row["label"])
    assert "sorted by label" in str(findings(train=rows))
    # Nearly all rows have one label: neighbours are mostly equal in any order.
    skewed = [{"text": f"t{n}", "label": "a" if n % 12 else "bc"[n % 24 > 0]} for n in range(240)]
    assert "sorted by label" not in str(findings(train=skewed))


def test_a_column_that_tells_the_label_is_found():
    leak = {"id": lambda n, row: f"{row['label'] * 3}-{n}"}
    assert not problems(train=make(60, **leak))
    [text] = [one.text for one in findings(train=make(60, **leak)) if "tells" in one.text]
    assert text.startswith("the column 'id' tells the label (")
    assert text.endswith("-#', ...); the model does not read it")
    reads = Task(FORMATS["classification"], {"text": "{id} {text}", "label": "label"}, TASK.labels)
    [(_, text)] = problems(reads, train=make(60, **leak))
    assert text.endswith("the model reads it")


def test_scores_are_summarized():
    task = Task(FORMATS["classification"], {"text": "text", "label": "label"}, Range(0, 5))
    rows = [{"text": str(n), "label": n / 10} for n in range(40)]
    random.Random(0).shuffle(rows)
    assert not problems(task, train=rows)
    assert findings(task, train=rows)[0].text == "scores from 0 to 3.9, mean 1.95"
    equal = [{**row, "label": 2} for row in rows]
    assert problems(task, train=equal) == [("train", "all scores are equal")]


@pytest.mark.parametrize(("split", "is_problem"), [("predict", False), ("more", True)])
def test_a_split_without_labels_is_told(split, is_problem):
    rows = [{"text": str(n), "label": None} for n in range(30)]
    task = Task(FORMATS["classification"], {"text": "text"}, TASK.labels)
    items = build_examples(task, locate_rows(rows, split), split, labelled=False)
    [found] = check_splits(task, {split: list(items)})
    assert found == Finding(split, "no row has a label, so it cannot be scored", is_problem)
