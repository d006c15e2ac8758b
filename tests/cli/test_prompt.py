"""`gptft prompt`."""

import json

import pytest

from finetune.cli import main


def test_shots_are_numbers_after_one_option(base, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "answers.jsonl"
    words = ["prompt", "--task", task, "--base", str(base), "--shots", "0", "1", "2"]
    assert main([*words, "--seeds", "0-1", "--precision", "fp32", "-o", str(out)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert table[0][:3] == ["shots", "in", "context"]
    assert [line[0] for line in table[2:5]] == ["0", "1", "2"]
    # Without demonstrations seeds make no difference.
    assert [line[-1] for line in table[2:5]] == ["rows", "seeds", "seeds"]
    assert table[5] == ["precision:", "fp32"]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    options = list(dict.fromkeys((answer["shots"], answer["seed"]) for answer in answers))
    assert options == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(answers) == 5 * 12
    assert all(sum(answer["probabilities"]) == pytest.approx(1) for answer in answers)
    assert {answer["label"] for answer in answers} <= {"yes", "no"}


def test_answers_are_written_with_the_score_of_their_kind(base, tmp_path):
    out = tmp_path / "answers.jsonl"
    given = {
        "cola": [{"sentence": "It rained all night.", "label": n} for n in (0, 1)],
        "stsb": [{"sentence1": "It", "sentence2": "rained", "label": n} for n in (1.0, 4.0)],
    }
    columns = {}
    for name, made in given.items():
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in made))
        changes = [f"data.{role}={rows}" for role in ("train", "evaluate")]
        words = ["prompt", "--task", name, "--base", str(base), "-o", str(out)]
        words += ["--prompt", "gpt1"] if name == "cola" else []
        assert main([*words, "--set", *changes, "data.path=null"]) == 0
        columns[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(columns["cola"][0]) == ["shots", "seed", "id", "label", "log_probability"]
    assert columns["cola"][0]["log_probability"] < 0
    assert list(columns["stsb"][0]) == ["shots", "seed", "id", "label"]


def test_a_limit_leaves_the_demonstrations(base, task, tmp_path):
    out = tmp_path / "answers.jsonl"
    words = ["prompt", "--task", task, "--base", str(base), "--limit", "2", "--shots", "4"]
    assert main([*words, "-o", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_fine_tuned_run_is_a_base(base, task, tmp_path, capsys):
    """Its decoder with the tokens that fine-tuning added, without the head."""
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    words = ["train", "--task", task, "--base", str(base), "--max-tokens", "32"]
    assert main([*words, "--epochs", "1", "--precision", "fp32", "-o", str(run)]) == 0
    prompt = ["prompt", "--task", task, "--precision", "fp32", "-o", str(out)]
    probabilities = []
    for path in (run, run / "model", base):
        assert main([*prompt, "--base", str(path)]) == 0
        probabilities.append(
            [json.loads(line)["probabilities"] for line in out.read_text().splitlines()]
        )
    assert probabilities[0] == probabilities[1] != probabilities[2]
    capsys.readouterr()
    assert main(["generate", "It rained", "--base", str(run), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("It rained")


def test_ask_is_the_former_name(base, task, capsys):
    outputs = []
    for name in ("prompt", "ask"):
        assert main([name, "--task", task, "--base", str(base), "--precision", "bf16"]) == 0
        outputs.append(" ".join(capsys.readouterr().out.split()))
    assert outputs[0] == outputs[1]
    hint = "precision: bf16 (--precision fp32 reproduces the numbers of transformers)"
    assert hint in outputs[0]
