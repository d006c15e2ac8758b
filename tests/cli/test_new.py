"""`gptft new`: what it sees in a file, what it guesses, and the recipe it writes."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli.commands.new import find_held_out
from finetune.cli.drafting.columns import flatten, look
from finetune.cli.drafting.guesses import guess
from finetune.cli.drafting.hold_out import hold_out
from finetune.cli.drafting.recipe_text import quote
from finetune.data import read_rows
from finetune.recipe.yaml_documents import parse_document
from task_formats import UsageError

SENTENCE = "the cat sat on the mat number {}"


def table(rows=40, **columns):
    """Rows in which a function of the index gives every column."""
    return [{name: value(n) for name, value in columns.items()} for n in range(rows)]


def sentence(n):
    return SENTENCE.format(n)


def two(*names):
    return lambda n: names[n % len(names)]


TABLES = {
    "text and class": (
        table(id=str, review=sentence, sentiment=two("pos", "neg")),
        "classification",
        {"text": "review", "label": "sentiment"},
        {"neg": 20, "pos": 20},
    ),
    "glue's pair": (
        table(index=int, sentence1=sentence, sentence2=sentence, label=two("yes", "no")),
        "entailment",
        {"premise": "sentence1", "hypothesis": "sentence2", "label": "label"},
        {"no": 20, "yes": 20},
    ),
    "duplicates": (
        table(question1=sentence, question2=sentence, is_duplicate=two(0, 1)),
        "similarity",
        {"first": "question1", "second": "question2", "label": "is_duplicate"},
        {"0": 20, "1": 20},
    ),
    "scores": (
        table(**{"#1 String": sentence, "#2 String": sentence, "score": lambda n: n / 10}),
        "similarity",
        {"first": "#1 String", "second": "#2 String", "label": "score"},
        {},
    ),
    "numbered choices": (
        table(premise=sentence, choice1=sentence, choice2=sentence, label=two(0, 1, 1)),
        "multiple_choice",
        {"context": "premise", "choices": ("choice1", "choice2"), "label": "label"},
        {"0": 14, "1": 26},
    ),
    "lists of choices": (
        table(q=lambda n: {"stem": sentence(n), "options": ["a b", "c d", "e"]}, key=two("A", "B")),
        "multiple_choice",
        {"context": "q.stem", "choices": "q.options", "label": "key"},
        {"A": 20, "B": 20, "C": 0},
    ),
    "a story's ends": (
        table(
            InputSentence1=sentence,
            InputSentence2=sentence,
            RandomFifthSentenceQuiz1=sentence,
            RandomFifthSentenceQuiz2=sentence,
            AnswerRightEnding=two(1, 2),
        ),
        "multiple_choice",
        {
            "context": "{InputSentence1} {InputSentence2}",
            "choices": ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"),
            "label": "AnswerRightEnding",
        },
        {"1": 20, "2": 20},
    ),
    "an unknown name": (
        table(body=sentence, verdict=two("a", "b", "c"), day=lambda n: str(n % 7)),
        "classification",
        {"text": "body", "label": "verdict"},
        {"a": 14, "b": 13, "c": 13},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_guesses(name):
    rows, kind, columns, counts = TABLES[name]
    found = guess(look(rows)[0])
    assert (found.format, found.columns, found.counts) == (kind, columns, counts)
    assert (found.range is None) == bool(counts)


def test_what_the_user_knows_outdoes_the_guess():
    rows = TABLES["glue's pair"][0]
    columns, _ = look(rows)
    assert guess(columns, format="similarity").format == "similarity"
    assert guess(columns, texts=["sentence2"]).columns == {"text": "sentence2", "label": "label"}
    assert guess(columns, format="classification").format == "classification"


def test_a_rare_class_gets_a_metric_that_sees_it():
    rows = table(text=sentence, label=lambda n: "spam" if n % 10 == 0 else "ham")
    assert guess(look(rows)[0]).metrics == ("accuracy", "macro_f1")


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        (table(text=sentence, other=sentence), {}, "found no label column"),
        (table(label=two("a", "b"), x=two("c", "d")), {}, "found no text column"),
        (table(text=sentence, label=two("a")), {}, "1 different values, too few"),
        (table(text=sentence, label=two("a", "b")), {"label": "labl"}, "no column 'labl'"),
        (table(text=sentence, label=two("a", "b")), {"texts": ["txt"]}, "no column 'txt'"),
        (
            table(text=sentence, label=two("a", "b")),
            {"label": "text", "texts": ["text"]},
            "the column 'text' is named twice",
        ),
        (table(t=sentence, label=two(0, 1)), {"format": "multiple_choice"}, "found no choices"),
        (table(t=sentence, label=two(0, 1)), {"format": "entailment"}, "does not read 1 texts"),
        (
            table(rows=500, text=sentence, label=lambda n: f"v{n // 2}"),
            {},
            "250 different values, too many",
        ),
    ],
)
def test_a_file_that_makes_no_task_is_refused_with_a_cure(rows, options, what):
    with pytest.raises(UsageError, match=what) as caught:
        guess(look(rows)[0], **options)
    assert caught.value.cure


@given(st.text(min_size=1).filter(lambda text: text < "\ud800" or text > "\udfff"))
def test_any_text_is_quoted_so_that_it_comes_back(text):
    assert parse_document(f"a: {quote(text)}", "").data == {"a": text}
    assert parse_document(f"{quote(text)}: 1", "").data == {text: 1}


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text(), max_size=4))
def test_a_flat_row_is_its_own_flattening(row):
    assert dict(flatten(row)) == row


def test_columns_are_counted():
    columns, rows = look([{"a": "x y"}, {"a": "z", "b": 1.0}, {"a": "", "b": 2}, {"a": None}])
    by_name = {column.name: column for column in columns}
    assert rows == 4
    assert (by_name["a"].filled, by_name["a"].mean_words) == (2, 1.5)
    assert (by_name["b"].is_whole, by_name["b"].low, by_name["b"].high) == (True, 1, 2)
    assert dict(by_name["b"].values) == {"1": 1, "2": 1}


def test_the_file_held_out_beside_it_is_found(tmp_path):
    train = tmp_path / "train.tsv"
    train.touch()
    assert find_held_out(train) is None
    (tmp_path / "dev.tsv").touch()
    assert find_held_out(train) == tmp_path / "dev.tsv"
    assert find_held_out(tmp_path / "dev.tsv") is None


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_holding_out_loses_and_doubles_no_row(tmp_path, ending):
    rows = [{"text": f'say "{n}", twice\nor more', "label": str(n % 2)} for n in range(50)]
    file = tmp_path / f"rows.{ending}"
    if ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held = hold_out(file, 0.2, tmp_path)
    parts = [[dict(row) for _, row in read_rows(path)] for path in (train, held)]
    assert [len(part) for part in parts] == [40, 10]
    assert sorted(parts[0] + parts[1], key=str) == sorted(rows, key=str)
    with pytest.raises(UsageError, match="already there"):
        hold_out(file, 0.2, tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.999])
def test_holding_out_nothing_or_all_is_refused(tmp_path, part):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(UsageError, match="leaves a file empty"):
        hold_out(file, part, tmp_path)
    assert list(tmp_path.iterdir()) == [file]
