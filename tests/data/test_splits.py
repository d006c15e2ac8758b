"""Fractions of a labelled split: nested, stratified, and drawn by the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.draws import draw_fraction
from finetune.data.held_out import bin_scores
from finetune.training.finetuning import events
from tests.support import jobs

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(np.array)
FRACTIONS = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted)


@given(LABELS, FRACTIONS, st.integers(0, 5))
def test_a_smaller_fraction_is_a_subset_of_a_larger_one(labels, fractions, seed):
    small, large = (draw_fraction(labels, fraction, seed) for fraction in fractions)
    assert len(small) == max(1, round(fractions[0] * len(labels)))
    assert set(small) <= set(large) <= set(range(len(labels)))
    assert list(large) == sorted(set(large))
    assert list(draw_fraction(labels, 1, seed)) == list(range(len(labels)))


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 5))
def test_labels_keep_their_shares_to_within_a_row(zeros, ones, fraction, seed):
    labels = np.repeat([0, 1], [zeros, ones])
    rows = draw_fraction(labels, fraction, seed)
    share = len(rows) * ones / len(labels)
    assert abs(int(labels[rows].sum()) - share) <= 1


def test_scores_are_drawn_from_their_whole_range():
    scores = np.random.default_rng(0).uniform(0, 5, 200)
    rows = draw_fraction(bin_scores(scores), 0.1, 3)
    tenths = np.searchsorted(np.quantile(scores, np.arange(1, 10) / 10), scores[rows])
    assert sorted(tenths) == [n for n in range(10) for _ in range(2)]


def test_the_seed_decides_which_rows():
    labels = np.arange(100) % 2
    drawn = {tuple(draw_fraction(labels, 0.2, seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert tuple(draw_fraction(labels, 0.2, 3)) in drawn


@pytest.mark.parametrize("kind", ["entailment", "score"])
def test_a_run_trains_on_a_fraction(bases, tmp_path, kind):
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path, fraction=0.5, batch_size=4, epochs=1)
    started, *_ = events(recipe, tmp_path / "run")
    assert (started.examples, started.updates) == (10, 3)
    assert jobs.result(tmp_path / "run")["made_with"]["rows"] == {"train": 10, "evaluate": 9}
