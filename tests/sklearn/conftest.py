"""Texts about the weather that a tiny base learns in a few updates, and classifiers of them."""

import functools

import pytest

import finetune

WET = ["It rained all night.", "The street was wet.", "Rain, rain and rain.", "A wet morning."]
DRY = ["He rides a horse.", "A horse on the grass.", "The old atlas.", "A man and his horse."]
TEXTS = [*WET, *DRY] * 2
LABELS = (["wet"] * 4 + ["dry"] * 4) * 2
PAIRS = [(text, "It is wet.") for text in TEXTS]


@pytest.fixture(scope="session")
def make(bases):
    """Makes an unfitted classifier over a tiny base, quick to fit."""
    quick = {"learning_rate": 1e-2, "batch_size": 6, "epochs": 4, "max_tokens": 48}
    exact = {"head_dropout": 0, "precision": "fp32"}
    base = {"path": str(bases("gpt2")), "dropout": 0}
    return functools.partial(finetune.Classifier, base=base, **quick, **exact)


@pytest.fixture(scope="session")
def fitted(make):
    """A classifier fitted to texts."""
    return make().fit(TEXTS, LABELS)
