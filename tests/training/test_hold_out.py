"""Training with held-out rows: every command sees the same rows."""

import json

import pytest

import finetune
from finetune.cli import main
from finetune.data import held_out
from finetune.data.held_out import draw_held_out
from finetune.distributed.setup import create_accelerator
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import HELD_OUT, DataConfig
from finetune.training.finetuning import prepare_finetuning
from task_formats import UsageError
from tests.support import jobs


@pytest.fixture(scope="module")
def recipe(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hold_out")
    made = jobs.recipe("entailment", bases("gpt2"), folder, train=40, epochs=1)
    return made.model_copy(update={"data": DataConfig(train=made.data.train, hold_out=0.2)})


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return jobs.train(recipe, tmp_path_factory.mktemp("runs") / "run")


def test_the_held_out_rows_are_the_evaluation_split(run):
    result = jobs.result(run)
    assert result["made_with"]["rows"] == {"train": 32, "evaluate": 8}
    predictor = finetune.load(run)
    evaluation = predictor.evaluate_split()
    assert len(evaluation.split.examples) == 8
    for name in (HELD_OUT, "evaluate"):
        scores = predictor.evaluate_split(name).result.scores
        assert scores == pytest.approx(result["scores"][HELD_OUT], abs=1e-6)
    trained = predictor.evaluate_split("train").split.examples
    ids = {example.id for split in (trained, evaluation.split.examples) for example in split}
    assert ids == {f"train.jsonl/{n}" for n in range(40)}


def test_the_saved_recipe_holds_out_the_same_rows(run, recipe):
    saved = load_recipe(run / "recipe.yaml")
    assert saved.data == recipe.data
    changed = recipe.data.model_copy(update={"split_seed": 1})
    (run / "result.json").rename(run / "kept.json")
    try:
        with pytest.raises(UsageError, match="rows"):
            finetune.train(recipe.model_copy(update={"data": changed}), run, resume=True)
    finally:
        (run / "kept.json").rename(run / "result.json")


def test_both_parts_are_drawn_at_once(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    drawn = []

    def draw(*arguments):
        drawn.append(draw_held_out(*arguments))
        return drawn[-1]

    monkeypatch.setattr(held_out, "draw_held_out", draw)
    job = prepare_finetuning(recipe, recipe.task.build(), create_accelerator("fp32"))
    rows = [job.sources[name].rows for name in ("train", "evaluate")]
    assert (rows, len(drawn)) == ([32, 8], 1)


def test_evaluate_doctor_preview_and_report_read_the_held_out_rows(run, tmp_path, capsys):
    assert main(["evaluate", str(run)]) == 0
    table = capsys.readouterr().out
    assert HELD_OUT in table
    assert " 8 " in table
    main(["doctor", str(run)])
    output = capsys.readouterr().out
    assert "held-out rows of" in output
    assert "8 examples" in output
    assert "32 examples" in output
    assert "are also in train" not in output
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert "32" in page.read_text()


def test_the_option_holds_out_and_excludes_an_evaluation_file(tmp_path, capsys):
    rows = jobs.write_rows(tmp_path / "rows.jsonl", jobs.rows("classification", 30))
    recipe = {
        "task": {
            "format": "classification",
            "columns": {"text": "text", "label": "label"},
            "labels": {"0": "bad", "1": "middling", "2": "good"},
        },
        "data": {"train": rows},
        "base": {"path": "tiny"},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(recipe))
    command = ["show", str(tmp_path / "task.yaml"), "--hold-out", "0.2"]
    assert main(command) == 0
    assert "hold_out: 0.2" in capsys.readouterr().out
    assert main([*command, "--set", f"data.evaluate={rows}"]) == 2
    error = capsys.readouterr().err
    assert "hold_out and evaluate" in error
    assert "set data.evaluate to null" in " ".join(error.split())
