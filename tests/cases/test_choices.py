"""Multiple choice as people write it."""

import json

import pytest

from finetune.cli import main
from finetune.data import read_rows, write_rows
from finetune.recipe.loading import load_recipe
from task_formats import RowError

PAIRS = [(f"Which is bigger, {n} or {n + 1}?", [str(n), str(n + 1)], n % 2) for n in range(20, 80)]


def lists(write, **columns):
    return [
        {"question": q, "options": write(options), **{n: f(options, k) for n, f in columns.items()}}
        for q, options, k in PAIRS
    ]


def lettered(names, **columns):
    return [
        {"id": str(n), "question": q, **dict(zip(names, [*options, "none", "both"], strict=True))}
        | {name: value(k) for name, value in columns.items()}
        for n, (q, options, k) in enumerate(PAIRS)
    ]


CASES = {
    "lower-case letters": ("jsonl", lists(list, label=lambda o, k: "ab"[k])),
    "letters in any case": ("jsonl", lists(list, label=lambda o, k: "aB"[k])),
    "text of the answer": ("jsonl", lists(list, answer=lambda o, k: o[k])),
    "text of a Python list": ("csv", lists(str, label=lambda o, k: str(k))),
    "text of a JSON list": ("csv", lists(json.dumps, answer=lambda o, k: o[k])),
    "op columns": (
        "csv",
        lettered(["opa", "opb", "opc", "opd"], cop=str, subject_name=lambda k: ["sums", "size"][k]),
    ),
    "letters as columns": ("csv", lettered("ABCD", answer=lambda k: "AB"[k])),
    "labels before texts": (
        "jsonl",
        [
            {"question": q, "choices": {"label": ["A", "B"], "text": o}, "answerKey": "AB"[k]}
            for q, o, k in PAIRS
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_choices_and_answers_are_found(name, tmp_path, capsys):
    ending, rows = CASES[name]
    file, target = tmp_path / f"rows.{ending}", tmp_path / "rows.yaml"
    with write_rows(file, list(rows[0])) as sink:
        for row in rows:
            sink.write(row)
    assert main(["new", str(file), "-o", str(target)]) == 0
    assert "# 30 rows" in target.read_text()
    task = load_recipe(target).task.build()
    examples = [task.example(row, "x") for _, row in read_rows(file)]
    assert [example.choices[:2] for example in examples] == [tuple(o) for _, o, _ in PAIRS]
    assert [example.label for example in examples] == [k for _, _, k in PAIRS]
    assert [example.fields["context"] for example in examples] == [q for q, _, _ in PAIRS]


def test_a_row_may_have_fewer_choices(tmp_path):
    lines = [
        f'{n},"{q}",{o[0]},{o[1]},none,both,{"all" if n % 3 else ""},B'
        for n, (q, o, _) in enumerate(PAIRS)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["id,prompt,A,B,C,D,E,answer", *lines]) + "\n")
    target = tmp_path / "rows.yaml"
    assert main(["new", str(tmp_path / "rows.csv"), "-o", str(target)]) == 0
    task = load_recipe(target).task.build()
    rows = [row for _, row in read_rows(tmp_path / "rows.csv")]
    assert [len(task.example(row, "x").choices) for row in rows[:4]] == [4, 5, 5, 4]
    with pytest.raises(RowError, match="label 'E' is choice 5 of 4"):
        task.example({**rows[0], "answer": "E"}, "x")
    with pytest.raises(RowError, match="empty"):
        task.example({**rows[1], "C": ""}, "x")
    with pytest.raises(RowError, match="unknown label 'neither'"):
        task.example({**rows[1], "answer": "neither"}, "x")


def test_choices_that_are_not_understood_are_told(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    with write_rows(file, ["question", "options", "label"]) as sink:
        for row in lists(list, label=lambda o, k: ["first", "second"][k]):
            sink.write(row)
    assert main(["new", str(file), "-o", str(tmp_path / "r.yaml")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "options may be choices, but they are not used: label is taken for the label" in out
