"""`gptft scale noise`."""

import json
import shutil

import pytest

from finetune.cli import main
from finetune.pretraining import pretrain
from tests.pretraining.test_pretraining import books, plan  # noqa: F401  (a fixture)
from tests.support import jobs


@pytest.fixture(scope="module")
def text_run(books, tmp_path_factory):  # noqa: F811
    """A pre-training run that measured its noise, with two checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "text"
    settings = {"updates": 60, "dropout": 0.0, "keep_checkpoints": 2}
    pretrain(plan(books, noise_scale=True, **settings), run)
    return run


@pytest.fixture(scope="module")
def task_run(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    recipe = jobs.recipe("score", bases("gpt2"), folder / "data", lm_coefficient=0)
    return jobs.train(recipe, folder / "task")


def test_pretraining_is_measured_at_its_checkpoints_and_from_its_log(
    text_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    out, plots = tmp_path / "noise.json", tmp_path / "plots"
    words = ["scale", "noise", str(text_run), "--batches", "6", "-o", str(out)]
    assert main([*words, "--plots", str(plots)]) == 0
    printed = capsys.readouterr().out
    assert "noise scale, blocks" in printed
    assert "suggested" in printed
    assert "this run" in printed
    data = json.loads(out.read_text())
    assert [point["source"] for point in data["points"]] == ["log"] * 3 + ["checkpoint"] * 2
    assert [point["update"] for point in data["points"][-2:]] == [58, 60]
    assert data["points"][-1]["tokens_per_example"] > 40
    advice, noise = data["advice"], data["points"][-1]["moments"]
    assert advice["update"] in (58, 60)
    if advice["update"] == 60:
        assert advice["critical"]["value"] == pytest.approx(noise["noise"] / noise["signal"])
    assert advice["batch"] == 8
    assert {advice["suggested"], 8} <= {cost["batch"] for cost in advice["costs"]}
    assert (plots / "noise_scale.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_log_is_read_with_logged(text_run, tmp_path, capsys):
    shutil.copytree(text_run, tmp_path / "run", ignore=shutil.ignore_patterns("corpus", "model"))
    assert main(["scale", "noise", str(tmp_path / "run"), "--logged"]) == 0
    assert "checkpoint" not in capsys.readouterr().out


def test_fine_tuning_is_measured_in_examples(task_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "noise.json"
    words = ["scale", "noise", str(task_run), "--batches", "4", "--batch-size", "10"]
    assert main([*words, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "noise scale, examples" in printed
    assert "B_crit" not in printed
    data = json.loads(out.read_text())
    assert (data["unit"], data["fit"]) == ("example", None)
    assert {point["examples"] for point in data["points"]} == {8}


@pytest.mark.parametrize("kind", ["text_run", "task_run"])
def test_without_checkpoints_the_model_is_measured(kind, request, tmp_path, capsys):
    """It is that of the last update here, so it gives the same numbers."""
    source, copy = request.getfixturevalue(kind), tmp_path / "copy"
    shutil.copytree(source, copy)
    shutil.rmtree(copy / "checkpoints")
    found = []
    for number, run in enumerate((source, copy)):
        out = tmp_path / f"{number}.json"
        assert main(["scale", "noise", str(run), "--batches", "3", "-o", str(out)]) == 0
        found.append(json.loads(out.read_text())["points"][-1])
    assert [point["source"] for point in found] == ["checkpoint", "model"]
    if found[0]["update"] == found[1]["update"]:
        assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
        assert found[0]["moments"] == pytest.approx(found[1]["moments"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "missing"),
        (["RUN", "--batch-size", "1000"], "a batch of 1000 is larger than the 20 training"),
        (["RUN", "--logged"], "there are no checkpoints, and the log has no noise scale"),
    ],
)
def test_wrong_use_is_one_message(words, message, task_run, capsys):
    words = [str(task_run) if word == "RUN" else word for word in words]
    assert main(["scale", "noise", *words]) == 2
    assert message in capsys.readouterr().err
