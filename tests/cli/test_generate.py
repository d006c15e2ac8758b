"""`gptft generate`."""

import json

import pytest

from finetune.cli import main
from tests.cli.conftest import TEXT


def test_a_prompt_is_printed_before_the_new_text(base, capsys):
    assert main(["generate", "It rained", "--base", str(base), "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("It rained")


def test_an_output_file_holds_what_is_printed(base, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    words = ["generate", "It rained", "a", "--base", str(base), "--max-new-tokens", "3"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "-o", str(out), "--column", "say", "--batch-size", "1"]) == 0
    assert capsys.readouterr().out == ""
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["say"] for row in written] == ["It rained", "a"]
    assert "".join(f"{row['say']}{row['generated']}\n" for row in written) == shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "a"}\n{"n": 1}\n', "line 2: no text in column 'text'"),
        ('{"text": "a"}\n{"text": null}\n', "line 2: no text in column 'text'"),
        ('{"text": "a", "generated": "b"}\n', "already have a column 'generated'"),
        ("", "the file has no rows"),
        ('{"text": "a"}\n' * 1000 + '{"text": "a", "m": 1}\n', "'m' is in none of the first"),
    ],
)
def test_rows_without_a_prompt_are_refused(base, tmp_path, capsys, rows, message):
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    texts.write_text(rows)
    words = ["generate", "-f", str(texts), "--base", str(base), "--max-new-tokens", "1"]
    assert main([*words, "--batch-size", "1000", "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert main([*words, "-o", str(texts)]) == 2
    assert "is also the input file" in capsys.readouterr().err
    assert not out.exists()
    assert texts.read_text() == rows


def test_a_prompt_that_is_too_long_is_refused_with_its_line(base, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("It", TEXT, "a")))
    words = ["generate", "-f", str(texts), "--base", str(base), "--max-new-tokens", "20"]
    assert main([*words, "-o", str(tmp_path / "out.jsonl")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "texts.jsonl, line 2: a text of" in error
    assert main(["generate", "x", "--base", str(base), "--max-new-tokens", "99"]) == 2
    assert capsys.readouterr().out == ""


def test_rows_keep_their_columns(base, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"n": 1, "say": "It"}\n{"n": 2, "say": "and in"}\n{"n": 3, "say": "a"}\n')
    out = tmp_path / "out.csv"
    words = ["generate", "-f", str(texts), "--column", "say", "--base", str(base)]
    assert main([*words, "--max-new-tokens", "3", "--batch-size", "2", "-o", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "n,say,generated"
    assert main([*words, "--max-new-tokens", "3", "--beams", "2"]) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["n"] for row in written] == [1, 2, 3]
