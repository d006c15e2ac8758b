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
