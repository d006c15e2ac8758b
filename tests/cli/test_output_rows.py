"""Labelled rows are streamed: few are held at once, and fewer if they are large."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

from finetune.cli.output_rows import label_rows
from finetune.data import LocatedRow, RowLocation, Rows
from finetune.recipe.schema import TaskConfig
from task_formats import Example, Prediction

TASK = TaskConfig(
    format="classification", columns={"text": "text", "label": "label"}, labels=("no", "yes")
).build()
MEBIBYTE = "x" * 2**20
"""One object, so that the test itself needs no memory."""


class LargeRows(Rows):
    """300 rows of a MiB each, of which the task reads a few bytes."""

    origin = "large"

    def __init__(self) -> None:
        self.number_read = 0

    def read(self) -> Iterator[LocatedRow]:
        for number in range(300):
            self.number_read += 1
            yield RowLocation("large", number), {"text": f"{number}", "other": MEBIBYTE}

    def fingerprint(self) -> str:
        return ""


def test_large_rows_are_labelled_without_holding_many(tmp_path):
    rows, ahead = LargeRows(), []

    def stream(examples: Iterable[Example], progress: object) -> Iterator[Prediction]:
        for number, example in enumerate(list(examples)):
            ahead.append(rows.number_read - number - sum(done))
            yield Prediction(example.id, "yes", (0.25, 0.75))
        done.append(number + 1)

    done: list[int] = []
    predictor = SimpleNamespace(task=TASK, stream=stream)
    report = label_rows(predictor, rows, str(tmp_path / "out.parquet"), "parquet")
    assert report.examples == len(ahead) == 300
    assert max(ahead) <= 66
