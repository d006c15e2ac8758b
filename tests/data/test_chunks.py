"""Chunks of a stream are bounded by number and by memory, and nothing is read too early."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from finetune.data.chunks import memory_size, split_into_chunks


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(1, 20))
def test_chunks_hold_all_items_and_are_bounded(sizes, max_items, max_bytes):
    read = []

    def items():
        for size in sizes:
            read.append(size)
            yield size

    seen = []
    for chunk in split_into_chunks(items(), max_items, int, max_bytes):
        seen.append(chunk)
        assert 0 < len(chunk) <= max_items
        assert sum(chunk[:-1]) < max_bytes
        assert len(read) == len(list(chain(*seen))), "an item of the next chunk was read"
    assert list(chain(*seen)) == sizes


def test_the_size_of_a_row_is_that_of_all_its_values():
    assert memory_size({"a": "x" * 1000}) > 1000
    assert memory_size({"a": ["x" * 1000, {"b": "y" * 1000}]}) > 2000
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert memory_size(deep) > 10_000
