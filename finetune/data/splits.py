"""Splits: the encoded rows of a file or data set, and fractions of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from finetune.data.draws import draw_fraction
from finetune.data.examples import LocatedExample, ReadReport, build_examples, read_examples
from finetune.data.held_out import HeldOutDraw, open_split, stratify
from finetune.data.token_store import TokenStore, encode_examples, load_or_encode
from finetune.recipe.schema import HELD_OUT, DataConfig, Recipe
from finetune.storage.files import cache_folder
from task_formats import Example, Task, UsageError, ViewEncoder


class Split(NamedTuple):
    """The encoded rows of one split."""

    examples: TokenStore
    report: ReadReport
    """What was left out."""
    origin: str
    """Where the rows come from, for messages."""
    fingerprint: str
    """SHA-256 of the rows."""
    description: str = ""
    """How its file is written, if the ending does not say it."""

    def describe(self) -> Iterator[str]:
        """Yields what the user should know about the rows."""
        if self.description:
            yield f"{self.origin}: {self.description}"
        yield from self.report.describe(self.origin)


def encode_split(
    recipe: Recipe,
    task: Task,
    encoder: ViewEncoder,
    name: str,
    *,
    tokenizer_hash: str | None = None,
    labelled: bool = True,
    draw: HeldOutDraw | None = None,
) -> Split:
    """Reads, checks and encodes a split; encoded rows are kept in the user's cache.

    The split is named as in the recipe (`data.train`). Without `tokenizer_hash`, which identifies
    the encoder's tokenizer, nothing is cached. `labelled` says whether every row needs a label.
    `draw` is that of `open_split`.

    Raises:
        UsageError: There is no such split, or no usable row.
        RowError: A row cannot be used, and `data.on_bad_row` is "stop".
    """
    data = recipe.data
    rows = open_split(data, task, name, draw)
    fingerprint = rows.fingerprint()
    read = partial(
        read_examples,
        task,
        rows,
        _id_prefix(data, name),
        labelled=labelled,
        on_bad_row=data.on_bad_row,
        limit=data.limit,
    )
    if tokenizer_hash is None or task.convert_row is not None:
        examples, report = read()
        store = encode_examples(examples, encoder)
        return Split(store, report, rows.origin, fingerprint, rows.describe())
    # The key holds everything that the encoded rows depend on.
    unused = {"prompt", "prompts", "metrics", "select", "positive"}
    content = [fingerprint, name, labelled, tokenizer_hash]
    content += [recipe.task.model_dump_json(exclude=unused), list(encoder.specials)]
    key = json.dumps([*content, encoder.max_tokens, data.limit, data.on_bad_row])
    try:
        cache = cache_folder()
    except UsageError:
        cache = None
    store, report = load_or_encode(read, encoder, cache, key)
    return Split(store, report, rows.origin, fingerprint, rows.describe())


def _id_prefix(data: DataConfig, name: str) -> str:
    """A file's name without its folder, which is the same for all rows; or the split's name."""
    name = data.train if name == HELD_OUT and data.hold_out and data.train else name
    return name if data.path else Path(name).name


def find_rows(data: DataConfig, task: Task, name: str, ids: Set[str]) -> dict[str, LocatedExample]:
    """Returns the rows of a split with the given ids, by id; ids and names as in `encode_split`."""
    rows, prefix = open_split(data, task, name), _id_prefix(data, name)
    examples = build_examples(
        task, rows.read(), prefix, labelled=False, on_bad_row="skip", indices=rows.indices()
    )
    return {item.example.id: item for item in examples if item.example.id in ids}


def read_split(
    task: Task,
    data: DataConfig,
    role: Literal["train", "evaluate"],
    *,
    labelled: bool = True,
    limit: int | None = None,
    draw: HeldOutDraw | None = None,
) -> list[Example]:
    """Returns the examples of a split that the recipe names; UsageError if it names none.

    `draw` is that of `open_split`.
    """
    split = data.train if role == "train" else data.evaluation_split
    if split is None:
        cure = "Name a split or a file."
        raise UsageError(f"data.{role} is not set", where=f"data.{role}", cure=cure)
    rows, on_bad_row = open_split(data, task, split, draw), data.on_bad_row
    examples, _ = read_examples(
        task, rows, split, labelled=labelled, on_bad_row=on_bad_row, limit=limit
    )
    return list(examples)


def encode_training_split(
    recipe: Recipe,
    task: Task,
    encoder: ViewEncoder,
    *,
    examples: Sequence[Example] | None = None,
    tokenizer_hash: str | None = None,
    draw: HeldOutDraw | None = None,
) -> Split:
    """Encodes `train.fraction` of the split that `data.train` names.

    `examples` replace its rows and are not cached. The other arguments and the errors are those of
    `encode_split`; UsageError also if `data.train` is empty.
    """
    if examples is not None:
        store = encode_examples(examples, encoder)
        fingerprint = hashlib.sha256(repr(examples).encode("utf-8", "backslashreplace"))
        split = Split(store, ReadReport(rows=len(store)), "examples", fingerprint.hexdigest())
    elif recipe.data.train is None:
        raise UsageError("nothing to train on", where="data.train", cure="Name a split or a file.")
    else:
        split = encode_split(
            recipe, task, encoder, recipe.data.train, tokenizer_hash=tokenizer_hash, draw=draw
        )
    config, store = recipe.train, split.examples
    if config.fraction == 1:
        return split
    strata = stratify(store.labels, task)
    rows = draw_fraction(strata, config.fraction, config.seed)
    return split._replace(examples=store.select(rows))
