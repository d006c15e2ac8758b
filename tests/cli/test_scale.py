"""`gptft scale`."""

import json

import pytest

from finetune.cli import main
from tests.scaling.losses import make_losses


@pytest.fixture
def table(tmp_path):
    values, loss = make_losses("hoffmann", noise=0.002, size=4)
    lines = [f"{n},{d},{value}" for (n, d), value in zip(values.tolist(), loss, strict=True)]
    (tmp_path / "losses.csv").write_text("\n".join(["params,tokens,loss", *lines]))
    return tmp_path / "losses.csv"


def test_fit_then_plan(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # Narrow tables wrap their cells.
    out = tmp_path / "fit.json"
    words = ["scale", "fit", str(table), "-o", str(out), "--bootstrap", "20"]
    assert main([*words, "--compute", "1e21", "--at", "7e9,1.4e11"]) == 0
    printed = capsys.readouterr().out
    assert "16 points: N from 'params', D from 'tokens', loss from 'loss'" in printed
    assert "482 Besiroglu" in printed
    assert "C = 6·N·D in 16 of 16 points" in printed
    data = json.loads(out.read_text())
    alpha = data["laws"]["hoffmann"]["constants"]["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert alpha["value"] == pytest.approx(0.3478, rel=0.1)
    [hoffmann, _] = data["predictions"]["losses"]
    assert hoffmann["loss"]["value"] == pytest.approx(2.188, abs=0.03)

    assert main(["scale", "plan", "--compute", "1e19", "--by", str(out), "--rate", "1e14"]) == 0
    printed = capsys.readouterr().out
    assert "27.8 hours" in printed
    assert "the critical batch" not in printed
    assert "extrapolation" not in printed


def test_the_highest_losses_are_left_out_and_named(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    words = ["scale", "fit", str(table), "-o", str(out), "--bootstrap", "20"]
    assert main([*words, "--leave-out-highest", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "14 points:" in printed
    assert "left out, the highest losses: " in printed
    data = json.loads(out.read_text())
    assert [place.rpartition(", ")[2] for place in data["left_out"]] == ["line 3", "line 2"]


def test_the_group_alone_prints_its_commands(capsys):
    assert main(["scale"]) == 0
    printed = capsys.readouterr()
    assert "Fit scaling laws to measured losses." in printed.out
    assert not printed.err


def test_extrapolations_are_printed_and_written(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    words = ["scale", "fit", str(table), "-o", str(out), "--bootstrap", "20"]
    assert main([*words, "--extrapolate", "0.5"]) == 0
    assert "8, C up to" in capsys.readouterr().out
    [_, hoffmann] = json.loads(out.read_text())["extrapolations"]
    assert hoffmann["law"] == "hoffmann"
    assert len(hoffmann["predictions"]) == 8


STUDY = """
corpus: {train: train.txt, evaluate: valid.txt}
tokenizer: {vocabulary: 300}
shape: {style: gpt2, positions: 24}
sizes: [{layers: 1, width: 16, heads: 2}]
tokens: [200, 400]
learning_rate: {value: 1e-2}
train: {schedule: wsd, batch_size: 2, warmup_updates: 1, precision: fp32}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.scaling.study.TRIAL_SECONDS", 0.01)
    (tmp_path / "train.txt").write_text("The rain came down on the river. " * 60)
    (tmp_path / "valid.txt").write_text("The river came down. " * 10)
    (tmp_path / "study.yaml").write_text(STUDY)
    return ["scale", "run", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "out")]


def test_run_then_list_then_run_again(study, tmp_path, capsys):
    assert main([*study, "--list"]) == 0
    assert capsys.readouterr().out.count("to do") == 2
    assert main([*study, "--only", "1x16-200*"]) == 0
    printed = capsys.readouterr().out
    assert "for 1 run; would end at" in printed
    assert "1/1  1x16-200-seed0" in printed
    assert f"gptft scale fit {tmp_path / 'out'}" in printed
    assert main([*study, "--list"]) == 0
    printed = capsys.readouterr().out
    assert (printed.count("to do"), printed.count("done")) == (1, 1)
    assert main(study) == 0
    printed = capsys.readouterr().out
    assert "already done" in printed
    assert "2/2  1x16-400-seed0" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "2"], "invalid shard '2'"),
        (["--shard", "3/2"], "invalid shard '3/2'"),
        (["--only", "1x17*"], "no cell '1x17*'"),
        (["--set", "train.decay=2"], "train.decay must be less than 1"),
    ],
)
def test_wrong_use_of_run_is_one_message(words, message, study, capsys):
    assert main([*study, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["hoffmann", "besiroglu", "kaplan"])
def test_plan_by_published_constants(name, capsys):
    assert main(["scale", "plan", "--compute", "1e18", "--by", name, "--batch", "5e5"]) == 0
    assert f"{name.capitalize()} et al." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "missing.csv"], "missing.csv"),
        (["fit", "TABLE", "--at", "7e9"], "'7e9' is not N,D"),
        (["fit", "TABLE", "--column", "N"], "'N' is not VARIABLE=NAME"),
        (["plan", "--compute", "0"], "0 is not a positive number"),
        (["plan", "--compute", "1e18", "--by", "gpt"], "there is no file 'gpt'"),
        (["plan", "--compute", "1e18", "--law", "kaplan"], "--law is for fits only"),
        (["plan", "--compute", "1e18", "--by", "TABLE"], "not valid JSON"),
    ],
)
def test_wrong_use_is_one_message(words, message, table, capsys):
    words = [str(table) if word == "TABLE" else word for word in words]
    assert main(["scale", *words]) == 2
    assert message in capsys.readouterr().err
