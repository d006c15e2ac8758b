"""Every shipped recipe: read, asked in words, and run over every row that lies beside us."""

from collections import Counter
from pathlib import Path

import pytest

from finetune.data import open_rows, read_examples
from finetune.recipe.loading import load_recipe, parse_recipe, shipped_recipes
from task_formats import Example, Range, SpecialTokens, ViewEncoder

SPECIALS = SpecialTokens(-1, -2, -3)

GLUE = "cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()
OTHERS = "snli scitail race storycloze copa arc demo".split()

# Recipe, split, rows, and how often each label comes in the order of the recipe's labels: what
# ../shared/data/README.md says. None: it does not say.
CARD = [
    ("rte", "train", 2490, (1249, 1241)),
    ("rte", "validation", 277, (146, 131)),
    ("rte", "test", 3000, ()),
    ("mrpc", "train", 3668, (1194, 2474)),
    ("mrpc", "validation", 408, (129, 279)),
    ("mrpc", "test", 1725, (578, 1147)),
    ("cola", "train", 8551, (2528, 6023)),
    ("cola", "validation", 1043, (322, 721)),
    ("cola", "test", 1063, ()),
    ("stsb", "train", 5749, None),
    ("stsb", "validation", 1500, None),
    ("stsb", "test", 1379, ()),
    pytest.param("sst2", "train", 67349, (29780, 37569), marks=pytest.mark.slow),
    ("sst2", "validation", 872, (428, 444)),
    ("sst2", "test", 1821, ()),
    ("wnli", "train", 635, (323, 312)),
    ("wnli", "validation", 71, (40, 31)),
    ("wnli", "test", 146, ()),
    ("qnli", "train", 5000, (2479, 2521)),
    ("qnli", "validation", 5463, (2702, 2761)),
    ("qqp", "train", 5000, (3150, 1850)),
    ("qqp", "validation", 1000, (617, 383)),
    ("mnli", "train", 4600, (1535, 1533, 1532)),
    ("mnli", "validation_matched", 1000, (333, 318, 349)),
    ("mnli", "validation_mismatched", 1000, (350, 316, 334)),
    ("mnli", "ax/test", 1104, ()),
    ("snli", "train", 3072, (1024, 1024, 1024)),
    ("snli", "validation", 1000, (347, 312, 341)),
    ("race", "train", 768, None),
    ("race", "validation", 369, None),
    ("race", "test", 375, None),
    ("copa", "train", 400, (195, 205)),
    ("copa", "validation", 100, (55, 45)),
    ("arc", "validation", 294, None),
    ("arc", "test", 1150, None),
]


def tokenize(texts):
    """A token for each word: its length."""
    return [[len(word) for word in text.split()] for text in texts]


def read(name: str, folder: Path, split: str, labelled: bool) -> list[Example]:
    recipe = load_recipe(name, {"data.path": str(folder)})
    task = recipe.task.build()
    examples, _ = read_examples(task, open_rows(recipe.data, split), split, labelled=labelled)
    return list(examples)


def test_the_tasks_of_the_papers_are_shipped():
    assert set(shipped_recipes()) == {*GLUE, *OTHERS}


@pytest.mark.parametrize("name", [*GLUE, *OTHERS])
def test_a_recipe_is_short_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert 10 <= len(recipe.about) < 100
    assert len(shipped_recipes()[name].read_text(encoding="utf-8").splitlines()) <= 20
    assert parse_recipe(recipe.to_yaml()) == recipe
    if name != "demo":
        assert recipe.train == parse_recipe("task: {format: classification, columns: {text: a}, "
                                     "labels: [a, b]}").train  # fmt: skip


def test_the_metrics_are_those_of_glue():
    found = {name: load_recipe(name).task.metrics for name in GLUE}
    assert found.pop("cola") == ("matthews",)
    assert found.pop("stsb") == ("pearson", "spearman")
    assert found.pop("mrpc") == found.pop("qqp") == ("accuracy", "f1")
    assert set(found.values()) == {("accuracy",)}


def test_f1_counts_the_equivalent_ones():
    assert load_recipe("mrpc").task.build().labels.names[-1] == "equivalent"
    assert load_recipe("qqp").task.build().labels.names[-1] == "duplicate"


@pytest.mark.parametrize("name", sorted({*GLUE, *OTHERS} - {"stsb"}))
def test_every_task_but_the_scored_one_can_be_asked_in_words(name):
    recipe = load_recipe(name)
    prompt = recipe.task.build().prompt
    assert prompt.normalization == {"arc": "prior", "race": "prior"}.get(
        name, "token" if recipe.task.format == "multiple_choice" else "none"
    )
    answers = (
        prompt.answers if isinstance(prompt.answers, str) else "".join(prompt.answers.values())
    )
    assert answers.startswith(" ")
    # A blank at the end of the question would be read apart from the word that follows.
    assert prompt.text == prompt.text.rstrip()


@pytest.mark.parametrize(("name", "split", "rows", "labels"), CARD)
def test_every_row_is_encoded(shared, name, split, rows, labels):
    folder = shared / "data" / ("glue" if name in GLUE else name)
    examples = read(name, folder, split, labelled=labels != ())
    task = load_recipe(name).task.build()
    encoder = ViewEncoder(task.format, tokenize, SPECIALS, 512)
    encoded = [
        one for at in range(0, rows, 1000) for one in encoder.encode(examples[at : at + 1000])
    ]
    assert len(encoded) == rows
    assert [one.id for one in encoded] == [f"{split}/{index}" for index in range(rows)]
    assert {one.prefix[0] for one in encoded} == {SPECIALS.start}
    endings = [(len(one.prefix), ending) for one in encoded for ending in one.endings]
    assert {ending[-1] for _, ending in endings} == {SPECIALS.extract}
    assert max(before + len(ending) for before, ending in endings) <= 512
    found = Counter(one.label for one in encoded)
    if labels is None:
        low, high = (0, 5) if isinstance(task.labels, Range) else (0, len(task.labels.names) - 1)
        assert all(low <= label <= high for label in found)
        assert len(found) > 2
    else:
        assert found == (dict(enumerate(labels)) or {None: rows})


def test_race_asks_after_the_article(shared):
    example = read("race", shared / "data" / "race", "validation", labelled=True)[0]
    views = load_recipe("race").task.build().format.render(example)
    context = f"{example.fields['article']}\n{example.fields['question']}"
    assert len(example.choices) == 4
    assert ["".join(view[0]) for view in views] == [context] * 4


def test_copa_asks_for_a_cause_or_an_effect(shared):
    examples = read("copa", shared / "data" / "copa", "train", labelled=True)
    asked = Counter(example.fields["context"].rpartition(". ")[2] for example in examples)
    # grep -c '"question": "cause"' gives 198.
    assert asked == {"This happened because": 198, "As a result": 202}


def test_arc_has_questions_of_three_and_of_five_choices(shared):
    examples = read("arc", shared / "data" / "arc", "test", labelled=True)
    assert Counter(len(example.choices) for example in examples) == {3: 3, 4: 1144, 5: 3}


def test_a_story_is_its_four_sentences():
    row = {f"input_sentence_{k}": f"Sentence {k}." for k in (1, 2, 3, 4)}
    row |= {"sentence_quiz1": "One end.", "sentence_quiz2": "Another.", "answer_right_ending": 2}
    example = load_recipe("storycloze").task.build().example(row, "train/0")
    assert example.fields["context"] == "Sentence 1. Sentence 2. Sentence 3. Sentence 4."
    assert (example.choices, example.label) == (("One end.", "Another."), 1)


def test_the_hubs_rows_are_read_as_they_are():
    """One row of each set that lies not beside us, or lies there in another layout."""
    rows = {
        "scitail": {"premise": "a", "hypothesis": "b", "label": "neutral"},
        "snli": {"premise": "a", "hypothesis": "b", "label": 1},
        "arc": {
            "question": "a",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        "copa": {
            "premise": "a", "choice1": "x", "choice2": "y", "question": "cause", "label": 1,
            "idx": 0,
        },
    }  # fmt: skip
    for name, row in rows.items():
        assert load_recipe(name).task.build().example(row, "train/0").label == 1


def test_the_demo_is_read_from_beside_its_recipe():
    recipe = load_recipe("demo")
    task = recipe.task.build()
    for split, rows in (("train", 2604), ("evaluate", 372), ("predict", 248)):
        examples, _ = read_examples(
            task, open_rows(recipe.data, getattr(recipe.data, split)), split
        )
        assert len(list(examples)) == rows
