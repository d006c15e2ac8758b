"""docs/results.md is generated from the cells of the study."""

import argparse
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ARMS = ["majority", "lambda-0", "run_glue"]


@pytest.fixture
def results(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.results")


@pytest.fixture
def options(shared, bases) -> argparse.Namespace:
    return argparse.Namespace(
        base=str(bases("gpt2")), data=shared / "data", tasks=["sst2"], arms=ARMS, seeds=[0, 1],
        limit=24, searched=["lambda-0", "run_glue"], rates=[2e-5, 1e-4], jobs=1,
        search_limit=None,
    )  # fmt: skip


def outcome(results, predictions, **scores: float):
    return results.Outcome(scores, predictions, 1.0, 1.0, "CPU", 1)


@pytest.mark.slow
def test_a_small_study_becomes_a_page(results, options, tmp_path, monkeypatch):
    monkeypatch.setitem(results.COMMON, "train.max_tokens", 64)
    record = results.Record(tmp_path / "cells.jsonl")
    for cell in results.plan_cells(options, record):
        if cell not in record.outcomes:
            record.add(cell, results.run_cell(options, cell))
    read_back = results.Record(record.path)
    assert read_back.outcomes == record.outcomes
    assert [*map(json.dumps, read_back.outcomes)] == [
        *map(json.dumps, dict.fromkeys(results.plan_cells(options, record)))
    ]
    page = results.write_page(options, read_back).splitlines()
    row = next(line for line in page if line.startswith("| sst2 | accuracy |"))
    shown = dict(zip(results.ARMS, row.split("|")[3:-1], strict=True))
    for arm in ARMS:
        cells = [cell for cell in record.outcomes if cell.arm == arm]
        scores = [record.outcomes[cell].scores["accuracy"] for cell in cells]
        assert shown[arm].strip().startswith(f"{np.median(scores):.3f}")
        assert len(scores) == (1 if arm == "majority" else 2)


def test_the_search_decides_the_learning_rate(results, options, tmp_path):
    record = results.Record(tmp_path / "cells.jsonl")
    for cell in results.plan_search(options, record):
        score = 0.9 if cell.rate == 1e-4 else 0.5
        record.add(cell, outcome(results, [], accuracy=score))
    assert {cell.rate for cell in record.outcomes} == {2e-5, 1e-4}
    rates = {cell.arm: cell.rate for cell in results.plan_cells(options, record)}
    assert rates == {"majority": 5e-5, "lambda-0": 1e-4, "run_glue": 1e-4}


def test_a_paired_difference_is_zero_for_equal_predictions(results, options):
    recipe = results.recipe_of(options, results.Cell("sst2", "lambda-0", 0, 5e-5))
    gold = results.read_gold(recipe)
    wrong = ["positive" if label == "negative" else "negative" for label in gold]
    right, reverse, mixed = (
        outcome(results, results.encode(recipe, labels))
        for labels in (gold, wrong, [*gold[:12], *wrong[12:]])
    )
    assert results.paired_difference(recipe, [right], [right]) == (0, 0, 0)
    assert results.paired_difference(recipe, [right], [reverse]) == (1, 1, 1)
    mean, low, high = results.paired_difference(recipe, [right], [mixed])
    assert mean == pytest.approx(0.5)
    assert low < mean < high
