"""`gptft evaluate` of runs that are not finished."""

from finetune.cli import main
from tests.support import jobs


def test_an_unfinished_run_is_evaluated_with_its_best_model(bases, tmp_path, capsys) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path)
    jobs.stop_at(recipe, tmp_path / "run", 4)
    [event] = [e for e in jobs.log(tmp_path / "run") if e["event"] == "evaluate"]
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    out, error = capsys.readouterr()
    assert "note: the run is not finished (gptft resume " in error
    assert f"{event['scores']['accuracy']:.4f}" in out


def test_a_run_without_a_model_names_the_next_command(bases, tmp_path, capsys) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path)
    jobs.stop_at(recipe, tmp_path / "run", 1)
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "this run has no model yet" in error
    assert f"gptft resume {tmp_path / 'run'}" in error
