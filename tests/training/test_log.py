"""The logger "finetune": what a run reports to Python's logging."""

import logging

from tests.support import jobs


def test_a_run_logs_start_evaluations_warnings_and_result(bases, tmp_path, caplog, capsys) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, epochs=1)
    recipe = jobs.change(recipe, "data", evaluate=recipe.data.train)
    with caplog.at_level(logging.INFO, "finetune"):
        jobs.train(recipe, tmp_path / "run")
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    run = f"{tmp_path / 'run'}: "
    assert all(message.startswith(run) for _, message in lines)
    texts = [(level, message.removeprefix(run)) for level, message in lines]
    assert ("INFO", "3 updates with 20 examples, fp32 on cpu") in texts
    [warning] = [message for level, message in texts if level == "WARNING"]
    assert warning.startswith("20 of 20 evaluation rows also occur in the training rows")
    assert any(message.startswith("update 3, accuracy 0.") for _, message in texts)
    assert any(message.startswith("finished, evaluate accuracy 0.") for _, message in texts)
    # Without a handler of the user nothing is printed.
    assert capsys.readouterr() == ("", "")


def test_updates_are_logged_for_debugging(bases, tmp_path, caplog) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, epochs=1)
    with caplog.at_level(logging.DEBUG, "finetune"):
        jobs.train(recipe, tmp_path / "run")
    losses = [event["loss"] for event in jobs.log(tmp_path / "run") if event["event"] == "train"]
    messages = [r.getMessage() for r in caplog.records if r.levelname == "DEBUG"]
    assert len(messages) == 3
    for number, (message, loss) in enumerate(zip(messages, losses, strict=True), 1):
        assert f"update {number}, loss {loss:.4f}, lr " in message
