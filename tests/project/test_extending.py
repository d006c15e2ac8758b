"""The code of docs/extending.md works as it is printed there."""

import json
import re

import numpy as np
import pytest
from safetensors.torch import load_file

import finetune
from finetune.cli.app import COMMANDS, Command, app, run_command
from finetune.data import sources
from finetune.data.examples import read_examples
from finetune.data.sources import open_rows
from finetune.evaluation.metrics import METRICS
from finetune.models import task_model
from tests.conftest import ROOT
from tests.support import jobs

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def run_section(title: str) -> dict:
    """Executes the Python blocks of a section; returns their names."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[title], re.DOTALL):
        exec(compile(block, f"docs/extending.md, {title}", "exec"), names)
    return names


@pytest.fixture
def recipe(bases, tmp_path):
    return jobs.recipe("classification", bases("gpt2"), tmp_path / "data", epochs=1)


def test_metric(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "cohen_kappa", None)  # Removed again after the test.
    run_section("A metric")
    metrics = ["accuracy", "cohen_kappa"]
    recipe = finetune.Recipe.model_validate(
        {**recipe.model_dump(), "task": {**recipe.task.model_dump(), "metrics": metrics}}
    )
    result = finetune.train(recipe, tmp_path / "run")
    assert result.scores["evaluate"].keys() >= set(metrics)
    predicted, gold = np.array(["a", "b", "b"]), np.array(["a", "a", "b"])
    assert METRICS["cohen_kappa"].function(predicted, gold, None) == pytest.approx(0.4)


def test_head(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(task_model, "build_head", run_section("A head")["build_head"])
    result = finetune.train(recipe, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "model" / "head.safetensors")
    assert saved.keys() == {"weight", "bias", "hidden.weight", "hidden.bias"}
    assert finetune.load(tmp_path / "run").evaluate() == result.scores["evaluate"]


def test_data_set(tmp_path, monkeypatch):
    entry = run_section("A data set")["BOOLQ"]
    monkeypatch.setattr(sources, "KNOWN_DATASETS", (*sources.KNOWN_DATASETS, entry))
    (yaml,) = re.findall(r"```yaml\n(.*?)```", SECTIONS["A data set"], re.DOTALL)
    (tmp_path / "mine.yaml").write_text(yaml)
    (tmp_path / "BoolQ").mkdir()
    row = {"passage": "It rained all day.", "question": "was it dry", "answer": 0}
    (tmp_path / "BoolQ" / "boolq_train.jsonl").write_text(json.dumps(row))
    recipe = finetune.load_recipe(tmp_path / "mine.yaml", {"data.path": str(tmp_path / "BoolQ")})
    rows = open_rows(recipe.data, recipe.data.train)
    examples, _ = read_examples(recipe.task.build(), rows, "train")
    (example,) = examples
    assert example.fields == {"premise": "It rained all day.", "hypothesis": "was it dry"}
    assert example.label == 0


def test_command(recipe, tmp_path, capsys, monkeypatch):
    result = finetune.train(recipe, tmp_path / "run")
    command = Command(run_section("A command")["scores"], "Use a run")
    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
    app.command(rich_help_panel=command.panel)(command.function)
    assert command.panel in {known.panel for known in COMMANDS}
    assert run_command(["scores", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == "".join(
        f"{split} {metric} {value:.4f}\n"
        for split, values in result.scores.items()
        for metric, value in values.items()
    )
    assert run_command(["scores", str(tmp_path)]) == 2


def test_tracker(recipe, tmp_path):
    logged = []
    track = run_section("A tracker")["train_and_track"]
    result = track(recipe, tmp_path / "run", lambda values, step: logged.append((step, values)))
    updates = [step for step, values in logged if values.keys() >= {"train/loss"}]
    assert updates == list(range(1, result.updates + 1))
    step, scores = logged[-1]
    assert step == result.update
    assert scores["evaluate/accuracy"] == result.scores["evaluate"]["accuracy"]
