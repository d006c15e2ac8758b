"""`gptft new`: the guessed task, and the recipe that is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli import main
from finetune.cli.columns import summarize_columns
from finetune.cli.commands.new import find_evaluation_file
from finetune.cli.recipe_text import quote
from finetune.cli.task_guess import guess_task
from finetune.recipe.loading import load_recipe, parse_recipe
from finetune.recipe.schema import Recipe
from task_formats import UsageError
from tests.support.jobs import write_rows


def table(rows=40, **columns):
    """Rows in which a function of the index gives each column."""
    return [{name: value(n) for name, value in columns.items()} for n in range(rows)]


def sentence(n):
    return f"the cat sat on the mat number {n}"


def cycle(*values):
    return lambda n: values[n % len(values)]


TABLES = {
    "text and class": (
        table(id=str, review=sentence, sentiment=cycle("pos", "neg")),
        "classification",
        {"text": "review", "label": "sentiment"},
        {"neg": 20, "pos": 20},
    ),
    "numbered sentences": (
        table(index=int, sentence1=sentence, sentence2=sentence, label=cycle("yes", "no")),
        "entailment",
        {"premise": "sentence1", "hypothesis": "sentence2", "label": "label"},
        {"no": 20, "yes": 20},
    ),
    "duplicates": (
        table(question1=sentence, question2=sentence, is_duplicate=cycle(0, 1)),
        "similarity",
        {"first": "question1", "second": "question2", "label": "is_duplicate"},
        {"0": 20, "1": 20},
    ),
    "fractional scores": (
        table(**{"#1 String": sentence, "#2 String": sentence, "score": lambda n: n / 10}),
        "similarity",
        {"first": "#1 String", "second": "#2 String", "label": "score"},
        {},
    ),
    "numbered choices": (
        table(premise=sentence, choice1=sentence, choice2=sentence, label=cycle(0, 1, 1)),
        "multiple_choice",
        {"context": "premise", "choices": ["choice1", "choice2"], "label": "label"},
        {"0": 14, "1": 26},
    ),
    "lists of choices": (
        table(
            q=lambda n: {"stem": sentence(n), "options": ["a b", "c d", "e"]},
            label=cycle("A", "B"),
        ),
        "multiple_choice",
        {"context": "q.stem", "choices": "q.options", "label": "label"},
        {"A": 20, "B": 20, "C": 0},
    ),
    "several texts and choices": (
        table(first=sentence, then=sentence, ending1=sentence, ending2=sentence, gold=cycle(1, 2)),
        "multiple_choice",
        {"context": "{first} {then}", "choices": ["ending1", "ending2"], "label": "gold"},
        {"1": 20, "2": 20},
    ),
    "unusual names": (
        table(
            pair_id=sentence,
            post_date=sentence,
            sentiment_text=sentence,
            day=lambda n: str(n % 7),
            verdict=cycle("1", "inf", "nan"),
        ),
        "classification",
        {"text": "sentiment_text", "label": "verdict"},
        {"1": 14, "inf": 13, "nan": 13},
    ),
}


EMOTIONS = ("anger", "joy", "surprise")


def some(values, n):
    """Another subset for every number below 8; the first value instead of the empty one."""
    return [value for k, value in enumerate(values) if n >> k & 1] or [values[0]]


SEVERAL = {
    "lists": (lambda n: some(EMOTIONS, n % 8), "", "emotions"),
    "lists of numbers": (lambda n: some([10, 9, 2], n % 8), "", "labels"),
    "commas": (lambda n: ",".join(some(EMOTIONS, n % 8)), ",", "tags"),
    "bars": (lambda n: " | ".join(some(EMOTIONS, n % 8)), "|", "genres"),
    "text of lists": (lambda n: str(some(EMOTIONS, n % 8)), ",", "label"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels_of_a_row_are_found(name, tmp_path):
    value, separator, column = SEVERAL[name]
    rows = table(id=str, text=sentence, **{column: value})
    guess = guess_task(summarize_columns(rows))
    names = ["2", "9", "10"] if name == "lists of numbers" else [*EMOTIONS]
    assert (guess.format, [*guess.labels], guess.separator) == ("classification", names, separator)
    assert guess.columns == {"text": "text", "label": column}
    write_rows(tmp_path / "train.jsonl", rows)
    target = tmp_path / "mine.yaml"
    assert main(["new", str(tmp_path / "train.jsonl"), "-o", str(target)]) == 0
    recipe = load_recipe(target)
    assert (recipe.task.multi_label, recipe.task.metrics) == (True, ("micro_f1", "macro_f1"))
    task = recipe.task.build()
    gold = [task.example(row, "x").label for row in rows]
    assert [sum(column) for column in zip(*gold, strict=True)] == [*guess.labels.values()]


def test_columns_of_zeros_and_ones_are_several_labels(tmp_path):
    flags = {name: cycle(*[0] * (k + 1), 1) for k, name in enumerate(EMOTIONS)}
    rows = table(id=int, comment_text=sentence, **flags)
    guess = guess_task(summarize_columns(rows))
    assert guess.columns == {"text": "comment_text", "label": [*EMOTIONS]}
    assert (guess.labels, guess.unused) == ({"anger": 20, "joy": 13, "surprise": 10}, ["id"])
    write_rows(tmp_path / "train.jsonl", rows)
    assert main(["new", str(tmp_path / "train.jsonl"), "-o", str(tmp_path / "mine.yaml")]) == 0
    task = load_recipe(tmp_path / "mine.yaml").task.build()
    assert task.example(rows[5], "x").label == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "label",
    [
        cycle("New York, NY", "Boston, MA", "Reno, NV"),
        cycle("a,b", "c,d", "e,f"),
        cycle("1,5", "2,0", "2,5", "3,0"),
        lambda n: sentence(n) + ", and then it slept" * (n % 2),
    ],
)
def test_commas_alone_do_not_make_several_labels(label):
    assert summarize_columns(table(label=label))["label"].items == {}


@pytest.mark.parametrize("name", TABLES)
def test_formats_columns_and_labels_are_guessed(name):
    rows, kind, columns, labels = TABLES[name]
    guess = guess_task(summarize_columns(rows))
    assert (guess.format, guess.columns, guess.labels) == (kind, columns, labels)
    assert guess.range == ((0, 4) if name == "fractional scores" else None)


def test_given_options_replace_guesses():
    columns = summarize_columns(TABLES["numbered sentences"][0])
    assert guess_task(columns, format="similarity").format == "similarity"
    assert guess_task(columns, format="classification").columns["text"] == "sentence1"
    assert guess_task(columns, texts=["sentence2"]).columns["text"] == "sentence2"
    columns = summarize_columns(table(text=sentence, x=sentence, y=sentence, label=cycle(0, 1)))
    guess = guess_task(columns, choices=["y", "x"])
    assert (guess.format, guess.columns["choices"]) == ("multiple_choice", ["y", "x"])


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        (table(text=sentence, other=sentence), {}, "found no label column"),
        (table(label=cycle("a", "b"), x=cycle("c", "d")), {}, "found no text column"),
        (table(text=sentence, label=cycle("a")), {}, "has one value"),
        (table(text=sentence, label=cycle("a", "b")), {"label": "labl"}, "no column 'labl'"),
        (table(text=sentence, label=cycle("a", "b")), {"texts": ["txt"]}, "no column 'txt'"),
        (table(t=sentence, label=cycle(0, 1)), {"format": "multiple_choice"}, "do not fit"),
        (table(t=sentence, label=cycle(0, 1)), {"format": "entailment"}, "do not fit the format"),
        (
            table(500, t=sentence, v=lambda n: f"v{n}"),
            {"label": "v"},
            "500 different values in 500",
        ),
        (
            table(x=sentence, **{"a": cycle(0, 1), "The cat sat on my old mat": str}),
            {},
            "like data",
        ),
    ],
)
def test_a_file_without_a_task_is_refused_with_a_cure(rows, options, what):
    with pytest.raises(UsageError, match=what) as caught:
        guess_task(summarize_columns(rows), **options)
    assert caught.value.cure


@given(st.text(min_size=1).filter(lambda text: text < "\ud800" or text > "\udfff"))
def test_every_text_survives_yaml(text):
    task = "{format: classification, columns: {text: a, label: b}, labels: [c, d]}"
    recipe = f"about: {quote(text)}\ntask: {task}\ndata: {{train: e, evaluate: f}}"
    assert parse_recipe(recipe).about == text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_the_recipe_trains(name, folder, bases, capsys):
    write_rows(folder / "rows.jsonl", TABLES[name][0])
    assert main(["new", "rows.jsonl", "--hold-out", "0.2"]) == 0
    assert f"Detected format: {TABLES[name][1]}" in capsys.readouterr().out
    recipe = load_recipe("rows.yaml")
    # Training values are the defaults.
    assert recipe.train == Recipe.model_fields["train"].default
    options = ["--base", str(bases("gpt2")), "--max-tokens", "64", "--epochs", "0.1"]
    assert main(["train", "--task", "rows.yaml", "--precision", "fp32", *options]) == 0
    assert recipe.task.metrics[0] in capsys.readouterr().out


CSV = "text,verdict\n" + "".join(
    f'"a text, with [bold]brackets[/bold] and ""quotes"" {n}",{("no", "yes")[n % 2]}\n'
    for n in range(20)
)


def test_a_file_called_dev_beside_it_is_used_for_evaluation(folder, capsys):
    (folder / "train.csv").write_text(CSV)
    assert find_evaluation_file(folder / "train.csv") is None
    (folder / "dev.csv").write_text(CSV)
    assert main(["new", "train.csv", "-o", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "gptft train --task mine.yaml" in out
    assert "No evaluation data" not in out
    recipe = load_recipe("mine.yaml")
    assert recipe.task.columns == {"text": "text", "label": "verdict"}
    assert recipe.task.build().labels.names == ("no", "yes")
    assert (recipe.data.train, recipe.data.evaluate) == tuple(
        str(folder / name) for name in ("train.csv", "dev.csv")
    )
    assert "# 10 rows" in (folder / "mine.yaml").read_text()


def test_files_are_named_from_the_folder_of_the_recipe(folder, capsys):
    for name in ("data", "recipes"):
        (folder / name).mkdir()
    (folder / "data" / "train.csv").write_text(CSV)
    assert main(["new", "data/train.csv", "-o", "recipes/mine.yaml", "--hold-out", "0.25"]) == 0
    data = load_recipe("recipes/mine.yaml").data
    assert (folder / "data" / "train.csv").samefile(str(data.train))
    assert data.hold_out == 0.25
    assert "5 rows are held out" in capsys.readouterr().out
    assert main(["new", "data/train.csv"]) == 0
    assert "No evaluation data. Use --hold-out 0.1" in capsys.readouterr().out
    assert load_recipe("data.yaml").data.train == str(folder / "data" / "train.csv")


def test_nothing_is_overwritten(folder, capsys):
    (folder / "rows.csv").write_text(CSV)
    (folder / "rows.yaml").write_text("precious")
    for options in ([], ["--hold-out", "0.1"]):
        assert main(["new", "rows.csv", *options]) == 2
        assert "rows.yaml already exists" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["rows.csv", "rows.yaml"]
    assert (folder / "rows.yaml").read_text() == "precious"


def test_rows_are_held_out_by_the_recipe(folder, capsys):
    (folder / "rows.csv").write_text(CSV)
    assert main(["new", "rows.csv", "--hold-out", "0.2"]) == 0
    assert "4 rows are held out for evaluation" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["rows.csv", "rows.yaml"]
    recipe = load_recipe("rows.yaml")
    assert (recipe.data.hold_out, recipe.data.evaluate) == (0.2, None)


def test_a_fraction_that_holds_out_nothing_is_refused(folder, capsys):
    (folder / "rows.csv").write_text(CSV)
    assert main(["new", "rows.csv", "--hold-out", "0.001"]) == 2
    assert "leaves none for evaluation" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["rows.csv"]
