"""Parts of a labelled set: nested, stratified, seeded, and nothing else of a run changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.fractions import draw_fraction
from finetune.data.token_store import Arrays, TokenStore
from finetune.training.train import events
from tests.support import jobs

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(np.array)
PARTS = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted)


@given(LABELS, PARTS, st.integers(0, 5))
def test_a_smaller_part_lies_within_a_larger_one(labels, parts, seed):
    small, large = (draw_fraction(labels, part, seed, classes=True) for part in parts)
    assert len(small) == max(1, round(parts[0] * len(labels)))
    assert set(small) <= set(large) <= set(range(len(labels)))
    assert list(large) == sorted(set(large))
    assert list(draw_fraction(labels, 1, seed, classes=True)) == list(range(len(labels)))


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 5))
def test_labels_keep_their_shares_to_within_a_row(zeros, ones, part, seed):
    labels = np.repeat([0, 1], [zeros, ones])
    rows = draw_fraction(labels, part, seed, classes=True)
    share = len(rows) * ones / len(labels)
    assert abs(int(labels[rows].sum()) - share) <= 1


def test_scores_are_taken_from_their_whole_range():
    scores = np.random.default_rng(0).uniform(0, 5, 200)
    rows = draw_fraction(scores, 0.1, 3, classes=False)
    tenths = np.searchsorted(np.quantile(scores, np.arange(1, 10) / 10), scores[rows])
    assert sorted(tenths) == [n for n in range(10) for _ in range(2)]


def test_the_seed_decides_which_rows():
    labels = np.arange(100) % 2
    drawn = {tuple(draw_fraction(labels, 0.2, seed, classes=True)) for seed in range(5)}
    assert len(drawn) == 5
    assert tuple(draw_fraction(labels, 0.2, 3, classes=True)) in drawn


def test_a_store_of_some_rows_holds_these_rows():
    arrays = Arrays(
        tokens=np.arange(9, dtype="<u4"),
        segments=np.array([0, 2, 3, 5, 6, 7, 9]),
        examples=np.array([0, 2, 3, 6]),
        labels=np.array([1.0, 0.0, np.nan]),
        cuts=np.array([0, 4, 1]),
        ids=np.frombuffer(b"abbccc", "u1"),
        id_ends=np.array([0, 1, 3, 6]),
    )
    store = TokenStore(arrays, whole=True)
    some = store.select([2, 0])

    def plain(one):
        return (
            one.id,
            list(one.prefix),
            [list(e) for e in one.endings],
            one.label,
            one.truncated_tokens,
        )

    assert [plain(one) for one in some] == [plain(store[2]), plain(store[0])]
    for name, sizes in store.compute_lengths()._asdict().items():
        assert list(getattr(some.compute_lengths(), name)) == [sizes[2], sizes[0]]


@pytest.mark.parametrize("kind", ["entailment", "score"])
def test_a_run_trains_on_a_part(bases, tmp_path, kind):
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path, fraction=0.5, batch_size=4, epochs=1)
    happening = list(events(recipe, tmp_path / "run"))
    assert (happening[0].examples, happening[0].updates) == (10, 3)
    assert jobs.result(tmp_path / "run")["made_with"]["rows"] == {"train": 10, "evaluate": 9}
