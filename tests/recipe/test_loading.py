"""Recipes as files: errors name line, key and cure; overrides are typed; dumps load back equal."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe.loading import (
    load_recipe,
    override_recipe,
    parse_recipe,
    shipped_recipes,
)
from finetune.recipe.schema import Recipe, TrainConfig
from finetune.recipe.yaml_documents import parse_document
from task_formats import UsageError

TEXT = """\
about: A trial.
task:
  format: entailment
  columns: {premise: sentence1, hypothesis: sentence2, label: label}
  labels: {0: yes, 1: no}
  prompt:
    text: "{premise}\\n{hypothesis}?"
    answers: {yes: " yes", no: " no"}
data:
  train: train.csv
train:
  learning_rate: 3e-5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yes_and_no_are_names_and_3e_5_is_a_number():
    recipe = parse_recipe(TEXT)
    assert recipe.task.labels == {0: "yes", 1: "no"}
    assert recipe.task.prompt.answers == {"yes": " yes", "no": " no"}
    assert recipe.train.learning_rate == 3e-5


def test_the_profile_paper_has_the_values_of_the_paper():
    recipe = parse_recipe(TEXT.partition("train:\n")[0] + "profile: paper\n")
    train = recipe.train
    assert (train.learning_rate, train.batch_size, train.epochs) == (6.25e-5, 32, 3)
    assert (train.warmup, train.lm_coefficient, train.head_dropout) == (0.002, 0.5, 0.1)
    assert (train.weight_decay, train.max_grad_norm, train.schedule) == (0.01, 1, "gpt1")
    assert (recipe.base.dropout, recipe.base.new_tokens) == (0.1, "mean")


def test_adapters_have_a_higher_learning_rate_unless_one_is_given():
    def rate(**changes) -> float:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return load_recipe("rte", dotted).train.learning_rate

    assert rate(base__lora={}) == pytest.approx(5 * rate())
    assert rate(base__lora={}, profile="paper") == pytest.approx(5 * 6.25e-5)
    assert rate(base__lora={}, train__learning_rate=3e-5) == 3e-5
    recipe = load_recipe("rte", {"base.lora": {"rank": 4}})
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_what_a_recipe_says_counts_more_than_its_profile():
    task = parse_recipe(TEXT).task
    given = {"learning_rate": 3e-5}
    from_text = parse_recipe(TEXT + "profile: paper\n")
    from_parts = Recipe(task=task, profile="paper", train=TrainConfig(**given))
    for recipe in (from_text, from_parts, parse_recipe(from_text.to_yaml())):
        assert (recipe.train.learning_rate, recipe.train.lm_coefficient) == (3e-5, 0.5)
        assert recipe.base.dropout == 0.1
    assert parse_recipe(TEXT).base.dropout is None
    changed = load_recipe("rte", {"profile": "paper", "base.dropout": 0.3})
    assert (changed.base.dropout, changed.train.schedule) == (0.3, "gpt1")


RATE = "learning_rate: 3e-5"
LABELS = "{0: yes, 1: no}"

ERRORS = [
    # old text, new text, line, message, cure
    (
        "learning_rate",
        "learningrate",
        12,
        "unknown key 'train.learningrate'",
        "train.learning_rate",
    ),
    ("format:", "fromat:", 3, "unknown key 'task.fromat'", "'task.format'"),
    ("about:", "abuot:", 1, "unknown key 'abuot'", "'about'"),
    ("about: A trial.", "epochs: 3", 1, "unknown key 'epochs'", "'train.epochs'"),
    (f"  {RATE}", "  columns: 3", 12, "unknown key 'train.columns'", "'task.columns'"),
    (f"  {RATE}", "  7: 3", 12, "unknown key 'train.7'", ""),
    ("entailment", "{veiws: [[a]]}", 3, "unknown key 'task.format.veiws'", "'task.format.views'"),
    (RATE, "epochs: many", 12, "train.epochs must be a valid number (got 'many')", ""),
    (RATE, "batch_size:", 12, "train.batch_size must be a valid integer (got null)", ""),
    (RATE, "epochs: .inf", 12, "train.epochs must be a finite number (got inf)", ""),
    (RATE, "epochs: -1.0", 12, "train.epochs must be greater than 0 (got -1.0)", ""),
    (RATE, "batch_size: 2.5", 12, "train.batch_size must be a valid integer (got 2.5)", ""),
    (RATE, "betas: [0.9, 1.5]", 12, "train.betas.1 must be less than 1 (got 1.5)", ""),
    (RATE, "layout: shard", 12, "'shared' or 'packed' (got 'shard')", ""),
    (RATE, f"batch_size: {'9' * 400}", 12, "train.batch_size", ""),
    ("train.csv", "5", 10, "data.train must be a valid string (got 5)", "in quotes"),
    ("entailment", "5", 3, "must be a valid string or a valid dictionary (got 5)", "quotes"),
    ("entailment", "entailmnt", 2, "unknown format 'entailmnt'", "'entailment'"),
    ("premise: sentence1", "premis: sentence1", 2, "'premise' is missing in", "premise"),
    ("premise: sentence1", "premise: '{a'", 2, "braces", "{column}"),
    ("label: label", "label: '{a}'", 4, "task.columns.label: must not be a template", "column"),
    (LABELS, "{0: 1, 1: no}", 5, "task.labels.0 must be a valid string (got 1)", "in quotes"),
    (LABELS, "{0: yes}", 2, "at least two names", "range"),
    (LABELS, "yes", 5, "task.labels must be a valid dictionary or a valid tuple (got 'yes')", ""),
    (LABELS, "{null: yes, 1: no}", 5, "task.labels must be a valid boolean", ""),
    (f"labels: {LABELS}", "range: [1]", 5, "task.range.1 is missing", ""),
    (f"labels: {LABELS}", "range: [1, 2, 3]", 5, "Tuple should have at most 2 items", ""),
    (f"labels: {LABELS}", "range: [0, true]\n  metrics: [mse]", 5, "valid number (got true)", ""),
    (f"labels: {LABELS}", "range: [0, 5]", 2, "'accuracy' is not a metric for scores", "pearson"),
    (f"  labels: {LABELS}\n", "", 2, "give exactly one of labels and range", ""),
    (
        "  prompt:",
        "  metrics: [acuracy]\n  prompt:",
        2,
        "'acuracy' is not a metric for classes",
        "'accuracy'",
    ),
    ("  prompt:", "  metrics: accuracy\n  prompt:", 6, "must be a valid tuple", "[first, second]"),
    ("  prompt:", "  metrics: []\n  prompt:", 6, "should have at least 1 item", ""),
    (
        "  prompt:",
        "  metrics: [mse]\n  prompt:",
        2,
        "'mse' is not a metric for classes",
        "Known: accuracy",
    ),
    ("  prompt:", "  positive: yess\n  prompt:", 2, "is not a label (got 'yess')", "'yes'"),
    ('{yes: " yes", no: " no"}', '{yes: " yes"}', 6, "the label 'no' is missing in answers", ""),
    ("{premise}", "{premis}", 6, "task.prompt: unknown field 'premis'", "'premise'"),
    (f"train:\n  {RATE}", "train: 5", 11, "train must be a valid dictionary", ""),
]


@pytest.mark.parametrize(("old", "new", "line", "what", "cure"), ERRORS)
def test_an_error_is_one_sentence_with_line_and_cure(tmp_path, old, new, line, what, cure):
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    error = caught.value
    assert what in error.headline
    assert cure in error.cure
    assert error.where == f"{path}, line {line}"
    assert "\n" not in error.headline


PIECES = ["null", "true", "3e-5", "[", "]", "{", "}", ": ", ", ", "- ", "\n", "  ", "'", '"', "&a",
          "*a", "!!x", "0", "-1", ".inf", "task", "train", "{x}", "#", "|", "? ", ""]  # fmt: skip


@given(
    st.sampled_from(sorted(shipped_recipes())),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), max_size=3),
)
def test_a_damaged_recipe_is_read_or_refused_in_one_sentence(name, damages):
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    for place, length, piece in damages:
        start = int(place * len(text))
        text = text[:start] + piece + text[start + length :]
    try:
        said = parse_recipe(text, "a.yaml")
    except UsageError as error:
        said = error.headline
    assert "\n" not in said if isinstance(said, str) else parse_recipe(said.to_yaml()) == said


def test_the_error_of_a_missing_section_describes_it():
    with pytest.raises(UsageError, match=r"task is missing\nHow a row becomes an example"):
        parse_recipe("about: x")


# Files


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("rtee", r"unknown task 'rtee'\nDid you mean 'rte'\?"),
        ("file.yml", "no such file: file.yml"),
    ],
)
def test_an_unknown_name_is_an_error(name, what):
    with pytest.raises(UsageError, match=what):
        load_recipe(name)


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"# fine\nabout: caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin\.yaml, line 2.*byte 0xe9 is not UTF-8"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_recipe(path).about == "A trial."


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path):
    with pytest.raises(UsageError, match="larger than 1024 KiB"):
        load_recipe(write(tmp_path, f"{TEXT}#{'x' * 1_100_000}"))


def test_files_are_looked_for_beside_the_recipe(tmp_path):
    text = TEXT.replace("train.csv", "train.csv\n  evaluate: ../dev.csv\n  extra: {hard: hard.csv}")
    data = load_recipe(write(tmp_path, text)).data
    assert data.train == str(tmp_path / "train.csv")
    assert (data.evaluate, data.predict) == (str(tmp_path / "../dev.csv"), None)
    assert data.extra == {"hard": str(tmp_path / "hard.csv")}


@pytest.mark.parametrize("name", ["train", "evaluate", "dev"])
def test_extra_splits_need_distinct_names(name, tmp_path):
    text = TEXT.replace(
        "train.csv", f"train\n  path: x/y\n  evaluate: dev\n  extra: {{{name}: hard}}"
    )
    with pytest.raises(UsageError, match=rf"data.* uses the name of another split: '{name}'"):
        load_recipe(write(tmp_path, text))


def test_splits_of_a_data_set_keep_their_names(tmp_path):
    text = TEXT.replace("train: train.csv", "path: nyu-mll/glue")
    data = load_recipe(write(tmp_path, text)).data
    assert (data.path, data.train, data.evaluate) == ("nyu-mll/glue", "train", "validation")


def test_a_folder_beside_the_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    path = write(tmp_path, TEXT.replace("train: train.csv", "path: rows"))
    monkeypatch.chdir(tmp_path.parent)
    assert load_recipe(path).data.path == str(tmp_path / "rows")


def test_paths_given_as_overrides_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "rows").mkdir(parents=True)
    monkeypatch.chdir(here)
    path = write(tmp_path, TEXT)
    data = load_recipe(path, {"data.evaluate": "dev.csv", "data.extra.hard": "~/hard.csv"}).data
    assert (data.train, data.evaluate) == (str(tmp_path / "train.csv"), str(here / "dev.csv"))
    assert data.extra == {"hard": str(Path.home() / "hard.csv")}
    path = write(tmp_path, TEXT.replace("data:\n  train: train.csv\n", ""))
    data = load_recipe(path, {"data.path": "rows"}).data
    assert (data.path, data.train, data.evaluate) == (str(here / "rows"), "train", "validation")


# Overrides


@pytest.mark.parametrize(
    ("path", "given", "found"),
    [
        ("train.epochs", "5", 5),
        ("train.epochs", "0.5", 0.5),
        ("train.learning_rate", "3e-5", 3e-5),
        ("train.checkpoint_minutes", "null", None),
        ("train.precision", "bf16", "bf16"),
        ("base.from_scratch", "true", True),
        ("base.lora.rank", "4", 4),
        ("base.path", "1e5", "1e5"),
        ("data.name", "2021", "2021"),
        ("about", "five # six", "five # six"),
        ("about", "{premise}", "{premise}"),
        ("task.labels", "{0: yes, 1: off}", {0: "yes", 1: "off"}),
        ("task.labels.0", "maybe", {0: "maybe", 1: "no"}),
        ("task.metrics", "[accuracy, matthews]", ("accuracy", "matthews")),
        ("task.positive", "yes", "yes"),
    ],
)
def test_an_override_is_typed_by_its_place(path, given, found):
    other = {"train.seed": "7", "data.revision": "2021"}
    recipe = override_recipe(parse_recipe(TEXT.partition("  prompt:")[0]), {**other, path: given})
    value = recipe
    for name in path.split("."):
        value = value if isinstance(value, dict) else getattr(value, name)
    assert (value, type(value)) == (found, type(found)) or float(value) == float(found)
    assert (recipe.train.seed, recipe.data.revision) == (7, "2021")


@pytest.mark.parametrize(
    ("path", "given", "what"),
    [
        ("train.epoch", "5", r"unknown key 'train.epoch'\nDid you mean 'train.epochs'\?"),
        ("train.epochs", "abc", "train.epochs must be a valid number \\(got 'abc'\\)"),
        ("train", "5", "train must be a valid dictionary \\(got 5\\)"),
        ("about.x", "5", "about must be a valid string"),
        ("base.lora.rank", "5000", "base.lora.rank must be less than or equal to 4096"),
        ("base.lora", "{rnak: 4}", "unknown key 'base.lora.rnak'"),
        ("task.metrics", "[acuracy]", "'acuracy' is not a metric for classes"),
        ("task.format", "similarity", "'first' is missing in"),
        ("", "5", "unknown key ''"),
    ],
)
def test_an_error_in_an_override_names_the_key(path, given, what):
    with pytest.raises(UsageError, match=what):
        override_recipe(parse_recipe(TEXT), {path: given})


def test_an_override_does_not_change_the_recipe():
    recipe = parse_recipe(TEXT)
    before = recipe.to_yaml()
    changed = override_recipe(recipe, {"task.labels.0": "ja", "task.prompt": None})
    assert changed.task.labels[0] == "ja"
    assert recipe.to_yaml() == before


# Writing


words = st.text(min_size=1)
names = st.lists(words.map(str.strip).filter(bool), min_size=2, max_size=4, unique=True)


@st.composite
def recipes(draw):
    labels = draw(names)
    task = {
        "format": {"views": [["{text}", "{more}"]]},
        "columns": {"text": "a", "more": "b", "label": draw(st.sampled_from("cd"))},
        "labels": labels,
        "unlabelled": draw(st.lists(words | st.integers(), max_size=2)),
    }
    train = {
        "learning_rate": draw(st.floats(1e-300, 1e300)),
        "epochs": draw(st.floats(1e-9, 1e6) | st.integers(1, 99)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "patience": draw(st.none() | st.integers(1, 9)),
    }
    base = {"path": draw(words), "lora": draw(st.none() | st.just({"targets": draw(names)}))}
    data = {"path": draw(words), "extra": draw(st.dictionaries(words, words, max_size=2))}
    parts = {"about": draw(st.text()), "task": task, "base": base, "data": data, "train": train}
    return Recipe.model_validate(parts)


@given(recipes())
def test_a_dumped_recipe_loads_back_equal(recipe):
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_every_value_is_written_out():
    recipe = parse_recipe(TEXT)
    written = parse_document(recipe.to_yaml()).data
    assert written.keys() == Recipe.model_fields.keys()
    for section in ("task", "base", "data", "train"):
        assert written[section].keys() == type(getattr(recipe, section)).model_fields.keys()
