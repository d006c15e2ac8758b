"""Everything that a job needs before its first forward pass: base, task, encoded rows."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.data.encoding_cache import encode_examples
from finetune.data.examples import ReadReport, read_examples
from finetune.data.fractions import draw_fraction
from finetune.data.rows import Rows
from finetune.data.sources import open_rows
from finetune.data.token_store import TokenStore
from finetune.recipe.schema import DataConfig, Recipe
from task_formats import Example, Row, Task, UsageError, ViewEncoder

Read = Callable[[Row], Row]


class Split(NamedTuple):
    """The encoded rows of one split, where they came from, and what was left out of them."""

    examples: TokenStore
    report: ReadReport
    origin: str
    fingerprint: str


def encode_split(
    recipe: Recipe,
    task: Task,
    encoder: ViewEncoder,
    name: str,
    *,
    tokenizer_hash: str | None = None,
    data: DataConfig | None = None,
    labelled: bool = True,
) -> Split:
    """Reads, checks and encodes a split; encoded rows are kept in the user's cache.

    Args:
        recipe: Says where the rows are and how many of them are read.
        task: Turns a row into an example.
        encoder: Turns examples into token sequences.
        name: The split, as in the recipe (`data.train`).
        tokenizer_hash: Identifies the encoder's tokenizer; without it nothing is cached.
        data: Replaces the recipe's data part.
        labelled: Whether every row must have a label.

    Raises:
        UsageError: There is no such split, or no usable row, or the file changed meanwhile.
        RowError: A row cannot be used, and `data.on_bad_row` is "stop".
    """
    data = data or recipe.data
    rows = open_rows(data, name)
    before, fingerprint = _stamp(rows), rows.fingerprint()
    # A file's rows are known by its name; its folder is the same for all of them.
    called = name if data.path else Path(name).name
    examples, report = read_examples(
        task, rows, called, labelled=labelled, on_bad_row=data.on_bad_row, limit=data.limit
    )
    examples = _watch(examples, rows, before)
    cached = tokenizer_hash is not None and task.read is None
    content = [fingerprint, name, labelled, tokenizer_hash]
    key = _cache_key(recipe, encoder, content) if cached else None
    store = encode_examples(examples, encoder, cache_folder() if key else None, key or "", report)
    return Split(store, report, rows.origin, fingerprint)


def _stamp(rows: Rows) -> list[tuple[int, ...]] | None:
    """What the system says of the rows' files, something else once they are written to."""
    try:
        found = [os.stat(file) for file in getattr(rows, "files", ()) if file != "-"]
    except OSError:
        return None
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]


def _watch(
    examples: Iterable[Example], rows: Rows, before: list[tuple[int, ...]] | None
) -> Iterator[Example]:
    """The examples; UsageError where their files were written or removed while they were read."""
    yield from examples
    if _stamp(rows) != before:
        cure = "Start again when nobody writes there."
        raise UsageError("changed while it was read", where=rows.origin, cure=cure)


def encode_training_split(
    recipe: Recipe,
    task: Task,
    encoder: ViewEncoder,
    *,
    examples: Sequence[Example] | None = None,
    tokenizer_hash: str | None = None,
) -> Split:
    """The rows that are trained on: `train.fraction` of the split that `data.train` names.

    `examples` replace the rows of `data.train`; they are not cached. Other arguments and errors
    as for `encode_split`; also UsageError where `data.train` is empty.
    """
    if examples is not None:
        store = encode_examples(examples, encoder, None, "")
        fingerprint = hashlib.sha256(repr(examples).encode("utf-8", "backslashreplace"))
        split = Split(store, ReadReport(rows=len(store)), "examples", fingerprint.hexdigest())
    elif recipe.data.train is None:
        raise UsageError("nothing to train on", where="data.train", cure="Name a split or a file.")
    else:
        name = recipe.data.train
        split = encode_split(recipe, task, encoder, name, tokenizer_hash=tokenizer_hash)
    if recipe.train.fraction == 1:
        return split
    store, part = split.examples, recipe.train
    rows = draw_fraction(store.labels, part.fraction, part.seed, classes=store.whole)
    return split._replace(examples=store.select(rows))


def cache_folder() -> Path:
    """Where encoded rows are kept between runs: $GPTFT_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptft"
    return Path(os.environ.get("GPTFT_CACHE", default))


def _cache_key(recipe: Recipe, encoder: ViewEncoder, content: list[object]) -> str:
    """Everything that the encoded rows depend on, as JSON."""
    parts = [
        *content,
        recipe.task.model_dump_json(exclude={"prompt", "prompts", "metrics", "select", "positive"}),
        list(encoder.specials),
        encoder.max_tokens,
        recipe.data.limit,
        recipe.data.on_bad_row,
    ]
    return json.dumps(parts)
