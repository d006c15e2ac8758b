"""docs/results.md is generated from the cells of the study."""

import json
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_flush")


@pytest.fixture
def results(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.results")


def test_a_small_study_becomes_a_page(results, shared, bases, tmp_path, capsys):
    changes = {**results.TRAIN, "train.epochs": 1, "train.max_tokens": 64, "data.limit": 24}
    plan = results.Plan(
        str(bases("gpt2")), shared / "data" / "glue", tmp_path, ["sst2"], (0, 1), (1e-3, 1e-3),
        changes,
    )  # fmt: skip
    results.run(plan)
    assert capsys.readouterr().out.count("accuracy") == 7
    results.run(plan)
    assert not capsys.readouterr().out, "finished cells are not run again"
    page = results.write_page(plan).splitlines()
    (row,) = [line for line in page if line.startswith("| sst2 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["sst2", "1", "accuracy"]
    assert cells[-1] == "2"
    for cell, name in zip(cells[4:7], ("scratch", "lambda-0", "lambda-0.5"), strict=True):
        paths = [tmp_path / "sst2" / f"{name}-seed-{seed}" / "result.json" for seed in plan.seeds]
        low, high = sorted(
            json.loads(path.read_text())["scores"]["validation"]["accuracy"] for path in paths
        )
        assert cell.startswith(f"{(low + high) / 2:.3f} ({low:.3f} to {high:.3f})")
    floor = float(cells[3])
    medians = [float(cell.split()[0]) for cell in cells[4:7]]
    summary = [line for line in page if "better on" in line]
    for line, pair in zip(summary, (medians[::2], medians[1:]), strict=True):
        skipped = "majority class: sst2" in line
        assert skipped == (max(pair) <= floor)
        assert ("better on 1 of 1 (sst2)" in line) == (pair[1] > pair[0] and not skipped)
