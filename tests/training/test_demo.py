"""The demo's data: made again byte for byte, balanced, and fair in what it asks."""

import csv
import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

SPLITS = {"train": 2604, "dev": 372, "test": 248}
LABELS = ("entailment", "not_entailment")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "recipes" / "demo"


@pytest.fixture(scope="module")
def generate(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_demo", folder / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {split: read(folder / f"{split}.tsv") for split in SPLITS}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_generator_writes_what_is_committed(generate, folder, tmp_path):
    generate.write_splits(tmp_path)
    for split in SPLITS:
        name = f"{split}.tsv"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_another_seed_gives_other_rows(generate, splits):
    rows = generate.make_splits(seed=1)["dev"]
    assert len(rows) == len(splits["dev"])
    assert {row[:2] for row in rows}.isdisjoint(pairs(splits["dev"]))


def pairs(rows):
    return [(row["premise"], row["hypothesis"]) for row in rows]


def test_sizes_and_balance(splits):
    for split, size in SPLITS.items():
        assert Counter(row["label"] for row in splits[split]) == dict.fromkeys(LABELS, size // 2)


def test_no_pair_twice_and_no_sentence_in_two_splits(splits):
    everything = [pair for rows in splits.values() for pair in pairs(rows)]
    assert len(set(everything)) == len(everything) == 3224
    sentences = [{text for pair in pairs(rows) for text in pair} for rows in splits.values()]
    assert len(set.union(*sentences)) == sum(map(len, sentences))


def test_every_hypothesis_is_entailed_as_often_as_not(splits):
    for rows in splits.values():
        entailed, not_entailed = (
            Counter(row["hypothesis"] for row in rows if row["label"] == label) for label in LABELS
        )
        assert entailed == not_entailed


def test_every_phenomenon_is_in_every_split_and_balanced_there(splits, generate):
    for rows in splits.values():
        found = Counter((row["phenomenon"], row["label"]) for row in rows)
        assert len(found) == 2 * len(generate.PHENOMENA) == 26
        for name in generate.PHENOMENA:
            assert found[name, LABELS[0]] == found[name, LABELS[1]] >= 8


def guess(splits, columns, phenomena):
    """Accuracy on dev of a linear model over words and pairs of words."""
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), lowercase=False), LogisticRegression(max_iter=1000)
    )
    rows = {
        split: [row for row in splits[split] if row["phenomenon"] in phenomena]
        for split in ("train", "dev")
    }
    texts = {
        split: [" ".join(row[column] for column in columns) for row in found]
        for split, found in rows.items()
    }
    model.fit(texts["train"], [row["label"] for row in rows["train"]])
    return model.score(texts["dev"], [row["label"] for row in rows["dev"]])


def test_the_hypothesis_alone_tells_nothing(splits, generate):
    assert 0.45 <= guess(splits, ["hypothesis"], generate.PHENOMENA) <= 0.55


CROSSWISE = "topic detail kind roles comparison order places opposites".split()


@pytest.mark.parametrize("columns", [("premise",), ("premise", "hypothesis")])
def test_words_alone_tell_next_to_nothing_where_sentences_go_crosswise(splits, columns):
    assert 0.4 <= guess(splits, columns, CROSSWISE) <= 0.6
