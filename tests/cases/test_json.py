"""JSON as pandas and others write it."""

import json

import pandas
import pytest

from finetune.cli import main
from finetune.data import read_rows

ROWS = [{"text": f"it was the film number {n}", "label": n % 2} for n in range(40)]


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "records"])
def test_orients_of_pandas(tmp_path, orient):
    path = tmp_path / "rows.json"
    pandas.DataFrame(ROWS).to_json(path, orient=orient)
    found = [{name: row[name] for name in ROWS[0]} for _, row in read_rows(path)]
    assert found == ROWS
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0


def test_a_list_in_an_object(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=1))
    located = list(read_rows(path))
    assert [row for _, row in located] == ROWS
    assert str(located[1][0]) == f"{path}, row 2"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "data": ["x", "y"]},
        {"question": {"stem": "a"}, "choices": {"text": ["x", "y"]}},
        {"data": [], "label": 1},
        {},
    ],
)
def test_an_object_that_is_no_table_is_a_row(tmp_path, row):
    (tmp_path / "row.json").write_text(json.dumps(row))
    assert [found for _, found in read_rows(tmp_path / "row.json")] == [row]
