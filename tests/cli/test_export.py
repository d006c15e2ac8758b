"""`gptft export`: the check in a process of its own, and what is printed."""

import pytest

from finetune.cli import main


@pytest.mark.parametrize("trained", ["entailment"], indirect=True)
def test_a_run_is_exported_and_checked(trained, tmp_path, capsys):
    words = ["export", str(trained.run), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Loaded without gptft: logits of 12 rows differ by at most ")
    assert (tmp_path / "out" / "README.md").is_file()
    assert main(words) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("trained", ["entailment"], indirect=True)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "gguf"], "invalid value for '--to': 'gguf' is not one of"),
        (["--to", "onnx", "--precision", "bf16"], "is written in fp32 only"),
        (["--check", "missing.csv"], "missing.csv"),
        (["-o", "."], "this is the current folder"),
    ],
)
def test_wrong_use_is_one_message(words, message, trained, tmp_path, capsys):
    assert main(["export", str(trained.run), "-o", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
