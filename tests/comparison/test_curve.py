"""The learning curve of a comparison, and the rows of its table."""

import re
from statistics import median

import pytest

from finetune.comparison import Row, ScoreSummary, Table, curve
from finetune.comparison.table import format_row
from task_formats import UsageError


def make_row(name: str, kind: str, labels: int, *values: float, fraction: float = 1.0) -> Row:
    scores = {"accuracy": ScoreSummary(median(values), min(values), max(values), "seeds", values)}
    coefficient = 0.5 if kind in ("finetune", "scratch") else None
    shots, seeds = labels if kind == "prompt" else 0, tuple(range(len(values)))
    return Row(name, kind, coefficient, fraction, labels, shots, seeds, scores, (), 1.0)


TABLE = Table(
    "[bold]Mine.[/bold] What is it?",
    "tiny",
    ("accuracy",),
    (
        make_row("majority", "majority", 200, 0.5),
        make_row("0-shot", "prompt", 0, 0.52),
        make_row("4-shot", "prompt", 4, 0.5, 0.55, 0.6),
        make_row("from scratch", "scratch", 200, 0.5, 0.6, 0.55),
        make_row("fine-tuned", "finetune", 200, 0.8, 0.7, 0.75),
        make_row("fine-tuned, 5 %", "finetune", 10, 0.6, 0.5, 0.55, fraction=0.05),
    ),
)


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_figure_has_the_format_of_its_suffix_and_is_the_same_every_time(
    tmp_path, suffix, start
):
    pytest.importorskip("matplotlib")
    assert TABLE.has_curve
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file in files:
        curve.draw_curve(TABLE, file)
    one, two = (file.read_bytes() for file in files)
    assert one.startswith(start)
    assert one == two


def test_axes_have_words_and_a_tick_for_every_number_of_labels(tmp_path):
    pytest.importorskip("matplotlib")
    curve.draw_curve(TABLE, tmp_path / "curve.svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "curve.svg").read_text())
    assert {"Labelled examples", "Accuracy", "4", "10", "200"} <= set(texts)
    assert curve._name_axis("macro_f1") == "Macro F1"


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.jpg is not a format of figures\nUse one of \.png"):
        curve.draw_curve(TABLE, tmp_path / "curve.jpg")


def test_the_curve_has_a_point_for_every_number_of_labels():
    series = curve.select_series(TABLE)
    labels = {name: [row.labels for row in rows] for name, rows in series.items()}
    assert labels == {"fine-tuned, λ = 0.5": [10, 200], "few-shot": [4]}


def test_demonstrations_that_did_not_fit_are_named():
    row = make_row("32-shot", "prompt", 32, 0.5)._replace(labels=3.42)
    assert format_row(row, ["accuracy"])[1] == "3.4 of 32"
    assert format_row(row._replace(labels=32), ["accuracy"])[1] == "32"
    assert format_row(make_row("tuned", "finetune", 67349, 0.5), ["accuracy"])[1] == "67,349"
