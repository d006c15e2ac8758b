"""Fixtures for the tests of finetune.Classifier."""

import functools

import pytest

from tests.support import weather


@pytest.fixture(scope="session")
def make(bases):
    """Makes an unfitted classifier over a tiny base, quick to fit."""
    return functools.partial(weather.classifier, bases("gpt2"))


@pytest.fixture(scope="session")
def fitted(make):
    """A classifier fitted to texts."""
    return make().fit(weather.TEXTS, weather.LABELS)
