"""Epochs, shares of processes and forward passes: complete, few and even."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.batching.collate import collate
from finetune.batching.sampler import (
    EpochSampler,
    batch_by_tokens,
    choose_epochs,
    shard_by_length,
)
from finetune.data.token_store import ExampleLengths, compute_lengths
from task_formats import Encoded
from tests.support.samples import LAYOUTS

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=7)


@st.composite
def encoded(draw) -> Encoded:
    return Encoded("x/0", draw(TOKENS), tuple(draw(st.lists(TOKENS, max_size=3))), None)


MANY = st.lists(encoded(), min_size=1, max_size=12)


def one_view_each(tokens: list[int]) -> ExampleLengths:
    lengths = np.array(tokens, np.int64)
    return ExampleLengths(lengths, np.ones_like(lengths), lengths)


@given(st.integers(1, 50), st.integers(1, 9), st.booleans())
def test_an_epoch_reads_every_row_once(rows: int, batch_size: int, drop: bool):
    sampler = EpochSampler(rows, batch_size, 2, seed=3, drop_incomplete=drop)
    updates = sampler.updates_per_epoch
    epochs = [
        [n for update in range(start + 1, start + updates + 1) for n in sampler.indices(update)]
        for start in (0, updates)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == (updates * batch_size if drop else rows)
    assert sampler.updates == max(2 * updates, min(updates, 1))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.booleans())
def test_stratified_updates_have_their_share_of_every_class(labels, batch_size, drop):
    classes = np.array(labels)
    sampler = EpochSampler(len(classes), batch_size, 1, 3, drop, classes)
    assert sorted(sampler.order(0)) == list(range(len(classes)))
    assert sampler.order(0).tolist() == sampler.order(0).tolist()
    for update in range(1, sampler.updates + 1):
        rows = sampler.indices(update)
        for label in set(labels):
            share = len(rows) * (classes == label).mean()
            assert abs((classes[rows] == label).sum() - share) < 2


def test_stratified_epochs_are_shuffled():
    classes = np.arange(100) % 2
    orders = [
        EpochSampler(100, 10, 2, seed, classes=classes).order(epoch).tolist()
        for seed in (3, 4)
        for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == 4


@given(st.integers(1, 10_000), st.integers(1, 99))
def test_few_rows_are_read_in_more_epochs_until_there_are_100_updates(rows, batch_size):
    epochs = choose_epochs(rows, batch_size)
    updates = EpochSampler(rows, batch_size, epochs, 0).updates
    assert 3 <= epochs <= 12
    assert updates >= 100 or epochs == 12
    fewer = EpochSampler(rows, batch_size, epochs - 1, 0).updates
    assert fewer < 100 or epochs == 3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 4))
def test_processes_share_an_update_evenly(tokens: list[int], processes: int):
    lengths = one_view_each(tokens)
    shares = shard_by_length(np.arange(len(tokens)), lengths, processes)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(tokens)))
    loads = [lengths.tokens[share].sum() for share in shares]
    assert max(loads) - min(loads) <= max(tokens)


@given(MANY, st.sampled_from(LAYOUTS), st.integers(1, 200))
def test_every_example_is_in_one_pass_within_the_limit_or_alone(many, layout, max_tokens):
    passes = batch_by_tokens(np.arange(len(many)), compute_lengths(many), layout, max_tokens)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(many)))
    for indices in passes:
        tokens = collate([many[n] for n in indices], layout).tokens.numel()
        assert tokens <= max_tokens or len(indices) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 300))
def test_packed_passes_are_few_and_even(tokens, max_tokens):
    lengths = one_view_each(tokens)
    passes = batch_by_tokens(np.arange(len(tokens)), lengths, "packed", max_tokens)
    loads = [lengths.tokens[indices].sum() for indices in passes]
    total = sum(tokens)
    # An example that does not fit into a pass leaves a gap shorter than itself.
    assert math.ceil(total / max_tokens) <= len(loads) <= math.ceil(total / (max_tokens - 49))
    assert max(loads) <= total / len(loads) + 50


@pytest.mark.parametrize(("count", "expected"), [(0, []), (32, [16, 16])])
def test_passes_have_equal_sizes(count: int, expected: list[int]):
    passes = batch_by_tokens(np.arange(count), one_view_each([70] * count), "packed", 2048)
    assert [len(indices) for indices in passes] == expected
