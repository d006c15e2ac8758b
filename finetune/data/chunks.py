"""Chunks of a stream of rows, bounded by their number and by their memory."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from task_formats import Example

CHUNK_BYTES = 2**26
"""Bytes of rows that are held at once (64 MiB), and one row more."""

Item = TypeVar("Item")


def split_into_chunks(
    items: Iterable[Item],
    max_items: int,
    size: Callable[[Item], int],
    max_bytes: int = CHUNK_BYTES,
) -> Iterator[list[Item]]:
    """Yields items in lists of at most `max_items`; reads no item beyond the list that it yields.

    A list ends with the item that makes it as large as `max_bytes`.
    """
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) >= max_items or total >= max_bytes:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def memory_size(value: Any) -> int:
    """Bytes of memory of a row, or of a value in it."""
    size, remaining = 0, [value]
    while remaining:
        item = remaining.pop()
        size += sys.getsizeof(item)
        if isinstance(item, dict):
            remaining += item.keys()
            remaining += item.values()
        elif isinstance(item, list | tuple):
            remaining += item
    return size


def example_size(example: Example) -> int:
    """Bytes of memory of the texts of an example."""
    return sum(map(sys.getsizeof, (*example.fields.values(), *example.choices)))
