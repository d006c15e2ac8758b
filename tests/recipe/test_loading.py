"""Recipes as files: each fault in one sentence with its line and its cure, and typed overrides."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe.errors import list_keys
from finetune.recipe.loading import (
    dump_recipe,
    load_recipe,
    override_recipe,
    parse_recipe,
    recipe_schema,
    shipped_recipes,
)
from finetune.recipe.schema import Recipe
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


def test_what_is_not_said_is_the_papers():
    train = parse_recipe(TEXT).train
    told = (train.batch_size, train.epochs, train.warmup, train.lm_coefficient, train.head_dropout)
    assert told == (32, 3, 0.002, 0.5, 0.1)
    assert train.weight_decay == 0.01
    assert train.max_grad_norm == 1


FAULTS = [
    # what is replaced, by what, the line, the sentence, the cure
    (
        "learning_rate",
        "learningrate",
        12,
        "unknown key 'train.learningrate'",
        "'train.learning_rate'",
    ),
    ("about:", "abuot:", 1, "unknown key 'abuot'", "'about'"),
    ("about: A trial.", "epochs: 3", 1, "unknown key 'epochs'", "'train.epochs'"),
    ("  learning_rate: 3e-5", "  columns: 3", 12, "unknown key 'train.columns'", "'task.columns'"),
    ("  learning_rate: 3e-5", "  7: 3", 12, "unknown key 'train.7'", "Known there: learning_rate,"),
    (
        "format: entailment",
        "format: {veiws: [[a]]}",
        3,
        "unknown key 'task.format.veiws'",
        "views'",
    ),
    (
        "learning_rate: 3e-5",
        "epochs: many",
        12,
        "train.epochs is 'many', and should be a number",
        "",
    ),
    ("learning_rate: 3e-5", "epochs: true", 12, "train.epochs is true, and should be a number", ""),
    ("learning_rate: 3e-5", "epochs:", 12, "train.epochs is empty, and should be a number", ""),
    ("learning_rate: 3e-5", "epochs: .inf", 12, "train.epochs is the number inf", ""),
    ("learning_rate: 3e-5", "epochs: .nan", 12, "train.epochs is the number nan", ""),
    ("learning_rate: 3e-5", "batch_size: 0", 12, "should be greater than 0", ""),
    ("learning_rate: 3e-5", "batch_size: 2.5", 12, "should be a whole number", ""),
    ("learning_rate: 3e-5", "betas: [0.9, 1.5]", 12, "train.betas.1 is the number 1.5", ""),
    (
        "learning_rate: 3e-5",
        "layout: shard",
        12,
        "should be 'auto', 'separate', 'shared'",
        "'shared'",
    ),
    ("train.csv", "5", 10, "data.train is the number 5, and should be text", "in quotes"),
    ("entailment", "5", 3, "should be text or a mapping", "in quotes"),
    ("entailment", "entailmnt", None, "unknown format 'entailmnt'", "'entailment'"),
    (
        "premise: sentence1",
        "premis: sentence1",
        None,
        "'premise' is missing in",
        "premise",
    ),
    (
        "{0: yes, 1: no}",
        "{0: 1, 1: no}",
        5,
        "task.labels.0 is the number 1, and should be text",
        "",
    ),
    ("{0: yes, 1: no}", "{0: yes}", 2, "at least two names", "range"),
    ("{0: yes, 1: no}", "yes", 5, "task.labels is 'yes', and should be a mapping or a list", ""),
    ("{0: yes, 1: no}", "{null: yes, 1: no}", 5, "a key of task.labels is empty", ""),
    ("labels: {0: yes, 1: no}", "range: [1]", 5, "task.range is the list [1]", ""),
    ("labels: {0: yes, 1: no}", "range: [1, 2, 3]", 5, "should be a shorter list", ""),
    (
        "labels: {0: yes, 1: no}",
        "range: [0, true]\n  metrics: [mse]",
        5,
        "task.range.1 is true",
        "",
    ),
    ("labels: {0: yes, 1: no}", "range: [0, 5]", 2, "accuracy is not for a range", "pearson"),
    ("  labels: {0: yes, 1: no}\n", "", 2, "give exactly one of labels and range", ""),
    (
        "  prompt:",
        "  metrics: [acuracy]\n  prompt:",
        6,
        "task.metrics.0 is 'acuracy'",
        "'accuracy'",
    ),
    ("  prompt:", "  metrics: accuracy\n  prompt:", 6, "should be a list", "[accuracy]"),
    ("  prompt:", "  metrics: []\n  prompt:", 6, "should be a longer list", ""),
    ("  prompt:", "  metrics: [mse]\n  prompt:", 2, "mse is not for labels", "the others"),
    ("  prompt:", "  positive: yess\n  prompt:", 2, "'yess', which is no label", "'yes'"),
    ('{yes: " yes", no: " no"}', '{yes: " yes"}', None, "the label 'no' is missing in answers", ""),
    ("{premise}", "{premis}", None, "unknown field 'premis'", "'premise'"),
    ("train:\n  learning_rate: 3e-5", "train: 5", 11, "train is the number 5, and should be a", ""),
]


@pytest.mark.parametrize(("old", "new", "line", "what", "cure"), FAULTS)
def test_a_fault_is_one_sentence_with_its_line_and_cure(tmp_path, old, new, line, what, cure):
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    error = caught.value
    assert what in error.headline
    assert cure in error.cure
    place = f"{path}, line {line}" if line else str(path)
    assert re.fullmatch(re.escape(place) + "(, task.*)?", error.where)
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
    assert "\n" not in said if isinstance(said, str) else parse_recipe(dump_recipe(said)) == said


def test_a_missing_part_says_what_it_is_for():
    with pytest.raises(UsageError, match=r"task is missing\nHow a row becomes an example"):
        parse_recipe("about: x")


def test_a_second_fault_does_not_hide_the_misspelt_key_that_made_it():
    with pytest.raises(UsageError, match=r"unknown key 'task\.fromat'"):
        parse_recipe(TEXT.replace("format:", "fromat:"))


# Files


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("rtee", r"unknown task 'rtee'\nDid you mean 'rte'\?"),
        ("no/such/file.yaml", "no recipe file no/such/file.yaml"),
        ("file.yml", "no recipe file file.yml"),
        (".", "is a folder"),
    ],
)
def test_a_name_nobody_knows(name, what):
    with pytest.raises(UsageError, match=what):
        load_recipe(name)


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"# fine\nabout: caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin\.yaml, line 2: the byte 0xe9 is not UTF-8"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_recipe(path).about == "A trial."


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path):
    with pytest.raises(UsageError, match="more than 256 KiB"):
        load_recipe(write(tmp_path, f"{TEXT}#{'x' * 300_000}"))


def test_files_are_looked_for_beside_the_recipe(tmp_path):
    text = TEXT.replace("train.csv", "train.csv\n  evaluate: ../dev.csv\n  extra: {hard: hard.csv}")
    data = load_recipe(write(tmp_path, text)).data
    assert data.train == str(tmp_path / "train.csv")
    assert (data.evaluate, data.predict) == (str(tmp_path / "../dev.csv"), None)
    assert data.extra == {"hard": str(tmp_path / "hard.csv")}


@pytest.mark.parametrize("name", ["train", "evaluate", "dev"])
def test_splits_scored_at_the_end_have_names_of_their_own(name, tmp_path):
    """One called evaluate took the place of the evaluation split in the result."""
    text = TEXT.replace(
        "train.csv", f"train\n  path: x/y\n  evaluate: dev\n  extra: {{{name}: hard}}"
    )
    with pytest.raises(UsageError, match=rf"data.* is called '{name}', as another one is"):
        load_recipe(write(tmp_path, text))


def test_splits_that_nobody_named_are_no_files(tmp_path):
    data = load_recipe(write(tmp_path, TEXT)).data
    assert (data.evaluate, data.predict) == (None, None)


def test_splits_of_a_data_set_keep_their_names(tmp_path):
    text = TEXT.replace("train: train.csv", "path: nyu-mll/glue")
    data = load_recipe(write(tmp_path, text)).data
    assert (data.path, data.train, data.evaluate) == ("nyu-mll/glue", "train", "validation")


def test_a_folder_beside_the_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    path = write(tmp_path, TEXT.replace("train: train.csv", "path: rows"))
    monkeypatch.chdir(tmp_path.parent)
    assert load_recipe(path).data.path == str(tmp_path / "rows")


def test_a_folder_of_the_command_line_is_left_where_the_program_runs(tmp_path):
    text = TEXT.replace("data:\n  train: train.csv\n", "")
    data = load_recipe(write(tmp_path, text), {"data.path": "rows"}).data
    assert (data.path, data.train, data.evaluate) == ("rows", "train", "validation")


# Overrides


@pytest.mark.parametrize(
    ("path", "given", "found"),
    [
        ("train.epochs", "5", 5),
        ("train.epochs", 5, 5),
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
    recipe = override_recipe(
        parse_recipe(TEXT.replace("  prompt:", "  x:").split("  x:")[0]), {path: given}
    )
    value = recipe
    for name in path.split("."):
        value = value if isinstance(value, dict) else getattr(value, name)
    assert (value, type(value)) == (found, type(found)) or float(value) == float(found)


def test_each_override_is_typed_for_itself():
    changes = {"data.name": "2021", "train.epochs": "7", "task.metrics": "[matthews]"}
    recipe = override_recipe(parse_recipe(TEXT), changes)
    assert (recipe.data.name, recipe.train.epochs, recipe.task.metrics) == (
        "2021",
        7,
        ("matthews",),
    )


@pytest.mark.parametrize(
    ("path", "given", "what"),
    [
        ("train.epoch", "5", r"unknown key 'train.epoch'\nDid you mean 'train.epochs'\?"),
        ("train.epochs", "abc", "train.epochs is 'abc', and should be a number"),
        ("train.epochs", True, "train.epochs is true, and should be a number"),
        ("train.epochs", "-1", "train.epochs is the number -1, and should be greater than 0"),
        ("train", "5", "train is the number 5, and should be a mapping"),
        ("about.x", "5", "about is the mapping"),
        ("base.lora", "{rnak: 4}", "unknown key 'base.lora.rnak'"),
        ("task.metrics", "[acuracy]", "task.metrics.0 is 'acuracy'"),
        ("task.format", "similarity", "'first' is missing in"),
        ("", "5", "unknown key ''"),
    ],
)
def test_a_wrong_override_is_explained(path, given, what):
    with pytest.raises(UsageError, match=what):
        override_recipe(parse_recipe(TEXT), {path: given})


def test_an_override_leaves_the_recipe_alone():
    recipe = parse_recipe(TEXT)
    before = dump_recipe(recipe)
    assert (
        override_recipe(recipe, {"task.labels.0": "ja", "task.prompt": None}).task.labels[0] == "ja"
    )
    assert dump_recipe(recipe) == before


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
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_every_value_is_written_out():
    data = json.loads(json.dumps(parse_recipe(TEXT).model_dump()))
    written = dump_recipe(parse_recipe(TEXT))
    for key in list_keys(Recipe):
        section, _, name = key.rpartition(".")
        if section in ("", *data) and name in data.get(section, data):
            assert re.search(rf"^ *{name}:", written, re.MULTILINE), key


# The schema


def test_the_schema_describes_every_key_and_allows_no_other():
    found = recipe_schema()
    parts = [found, *(part for part in found["$defs"].values() if part["type"] == "object")]
    assert len(parts) == 8
    for part in parts:
        assert part["additionalProperties"] is False
        assert part["description"]
        for name, value in part["properties"].items():
            assert value.get("description") or "$ref" in value, name


def test_the_schema_knows_the_defaults_and_the_choices():
    train = recipe_schema()["$defs"]["TrainConfig"]["properties"]
    assert train["learning_rate"]["default"] == 6.25e-5
    assert train["layout"]["enum"] == ["auto", "separate", "shared", "packed"]


def test_the_shipped_recipes_are_known_by_the_names_of_their_files():
    assert {"rte", "cola", "race", "storycloze"} <= set(shipped_recipes())
    assert all(path.stem == name for name, path in shipped_recipes().items())


def test_a_tilde_is_the_home_of_whoever_runs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = load_recipe(shipped_recipes()["rte"], {"data.path": None})
    part = recipe.data.model_copy(update={"path": None, "train": "~/a.csv", "evaluate": "b.csv"})
    path = write(tmp_path, dump_recipe(recipe.model_copy(update={"data": part})))
    placed = load_recipe(path).data
    assert (placed.train, placed.evaluate) == (f"{tmp_path}/home/a.csv", f"{tmp_path}/b.csv")
