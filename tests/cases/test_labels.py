"""Labels as people write them."""

import unicodedata
from collections import Counter

import pytest

from finetune.cli import main
from finetune.data.splits import read_split
from finetune.recipe.loading import load_recipe
from task_formats import Classes


def new(folder, rows, *options, name="rows.csv"):
    """The recipe of `gptft new` for a table of two columns, text and label."""
    lines = "".join(f"{text},{label}\n" for text, label in rows)
    (folder / name).write_text(f"text,label\n{lines}", encoding="utf-8")
    target = folder / "rows.yaml"
    assert main(["new", str(folder / name), "-o", str(target), *options]) == 0
    return load_recipe(target)


def text(n):
    return f"it was the film number {n}"


def test_whole_numbers_are_classes_unless_scores_are_asked_for(tmp_path, capsys):
    rows = [(text(n), n % 40) for n in range(400)]
    assert new(tmp_path, rows).task.build().labels.names == tuple(map(str, range(40)))
    (tmp_path / "rows.yaml").unlink()
    assert new(tmp_path, rows, "--scores").task.range == (0, 39)
    (tmp_path / "rows.yaml").unlink()
    assert new(tmp_path, [(text(n), n / 10) for n in range(40)]).task.range == (0, 4)
    (tmp_path / "words.csv").write_text("text,label\n" + "some words,a\nmore words,b\n" * 9)
    command = ["new", str(tmp_path / "words.csv"), "--scores", "-o", str(tmp_path / "w.yaml")]
    assert main(command) == 2
    assert "column 'label' does not hold numbers" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_label_that_is_no_number_among_numbers_is_left_out_and_named(tmp_path, capsys, word):
    rows = [(text(n), word if n == 7 else n % 2) for n in range(60)]
    task = new(tmp_path, rows).task.build()
    where = f"{tmp_path / 'rows.csv'}, line 9"
    out = capsys.readouterr().out.replace("\n", " ")
    assert f"1 row with the label '{word}' left out" in out
    assert where.replace(" ", "") in out.replace(" ", "")
    assert (task.labels.names, task.unlabelled) == (("0", "1"), frozenset([word]))


def test_the_dash_of_snli_is_no_label(tmp_path):
    words = ("entailment", "neutral", "contradiction")
    task = new(tmp_path, [(text(n), "-" if n == 9 else words[n % 3]) for n in range(60)])
    assert task.task.unlabelled == ("-",)
    assert task.task.build().labels.names == tuple(sorted(words))


def test_hundreds_of_classes(tmp_path):
    rows = [(text(n), f"intent_{n % 260:03d}") for n in range(1040)]
    assert len(new(tmp_path, rows, "--label", "label").task.build().labels.names) == 260


def test_equal_numbers_are_equal_labels(tmp_path):
    task = new(tmp_path, [(text(n), n % 2) for n in range(60)]).task.build()
    assert [task.labels.parse(value) for value in ("0.0", "1.0", 1.0, "1")] == [0, 1, 1, 1]
    (tmp_path / "rows.yaml").unlink()
    mixed = new(tmp_path, [(text(n), ("0", "1.0", "1", "0.0")[n % 4]) for n in range(60)])
    assert mixed.task.build().labels.names == ("0", "1")


def test_unicode_forms_are_equal_labels(tmp_path):
    composed, apart = (unicodedata.normalize(form, "thé") for form in ("NFC", "NFD"))
    assert composed != apart
    for written in (composed, apart):
        labels = Classes.of([written, "café"])
        assert [labels.parse(composed), labels.parse(apart)] == [0, 0]
        assert labels.names[0] == written
    rows = [(text(n), (composed, apart, "café")[n % 3]) for n in range(60)]
    assert new(tmp_path, rows).task.build().labels.names == ("café", composed)


def test_exact_labels_come_first():
    labels = Classes.of(["1.0", "1", "01"])
    assert [labels.parse(name) for name in labels.names] == [0, 1, 2]


def test_a_label_of_one_row_is_reported(tmp_path, capsys):
    new(tmp_path, [(text(n), "postive" if n == 20 else ("pos", "neg")[n % 2]) for n in range(60)])
    out = " ".join(capsys.readouterr().out.split())
    assert "Only one row has the label 'postive'" in out


def test_rare_labels_stay_in_training(tmp_path, capsys):
    rows = [(text(n), "rare" if n in (20, 21) else "ab"[n % 2]) for n in range(100)]
    new(tmp_path, rows, "--hold-out", "0.2")
    recipe = load_recipe(tmp_path / "rows.yaml")
    counts = [
        Counter(e.label for e in read_split(recipe.task.build(), recipe.data, role))
        for role in ("train", "evaluate")
    ]
    names = recipe.task.build().labels.names
    assert counts[0][names.index("rare")] >= 1
    assert [sum(count.values()) for count in counts] == [80, 20]
    # A fifth of every frequent label, up to one row.
    assert all(abs(counts[1][names.index(name)] - 0.2 * 49) < 1 for name in "ab")
