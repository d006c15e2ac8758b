"""Forward passes: all examples, within the budget, as few and as even as can be."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.batching.collate import collate
from finetune.batching.sampler import batch_by_tokens
from finetune.data.token_store import ExampleLengths, compute_lengths, encode_examples
from task_formats import Encoded

LAYOUTS = ("separate", "shared", "packed")
TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=7)


@st.composite
def encoded(draw) -> Encoded:
    return Encoded("x/0", draw(TOKENS), tuple(draw(st.lists(TOKENS, max_size=3))), None)


MANY = st.lists(encoded(), min_size=1, max_size=12)


@given(MANY, st.sampled_from(LAYOUTS), st.integers(1, 200))
def test_every_example_goes_once_and_within_the_budget_unless_alone(many, layout, budget):
    groups = batch_by_tokens(np.arange(len(many)), compute_lengths(many), layout, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(many)))
    for chosen in groups:
        cells = collate([many[n] for n in chosen], layout).tokens.numel()
        assert cells <= budget or len(chosen) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 300))
def test_packed_passes_are_few_and_even(lengths, budget):
    tokens = np.array(lengths)
    sizes = ExampleLengths(tokens, np.ones_like(tokens), tokens)
    groups = batch_by_tokens(np.arange(len(tokens)), sizes, "packed", budget)
    loads = [tokens[chosen].sum() for chosen in groups]
    total = tokens.sum()
    # What does not fit beside its longer neighbours leaves a gap shorter than itself.
    assert math.ceil(total / budget) <= len(loads) <= math.ceil(total / (budget - 49))
    assert max(loads) <= total / len(loads) + 50


def test_two_passes_share_the_work():
    tokens = np.full(32, 70)
    sizes = ExampleLengths(tokens, np.ones_like(tokens), tokens)
    groups = batch_by_tokens(np.arange(32), sizes, "packed", 2048)
    assert [len(chosen) for chosen in groups] == [16, 16]


def test_no_examples_make_no_pass():
    empty = np.empty(0, np.int64)
    assert batch_by_tokens(empty, ExampleLengths(empty, empty, empty), "packed", 10) == []


@given(MANY)
def test_a_store_knows_the_sizes_of_what_it_holds(many):
    class Ready:
        """Encodes nothing: the examples are encoded already."""

        def encode(self, examples):
            return examples

    store = encode_examples(many, Ready())
    for known, counted in zip(compute_lengths(store), compute_lengths(many), strict=True):
        assert known.tolist() == counted.tolist()
