"""Everything that a job needs before its first forward pass: base, task, encoded rows."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.data.encoding_cache import encode_examples
from finetune.data.examples import ReadReport, read_examples
from finetune.data.fractions import draw_fraction
from finetune.data.rows import Rows
from finetune.data.sources import open_rows
from finetune.data.token_store import TokenStore
from finetune.models.pretrained import Base
from finetune.recipe.schema import DataConfig, Recipe
from task_formats import Example, Row, Task, UsageError, ViewEncoder

Read = Callable[[Row], Row]


class Split(NamedTuple):
    """The encoded rows of one split, where they came from, and what was left out of them."""

    examples: TokenStore
    report: ReadReport
    origin: str
    fingerprint: str


def check_max_tokens(max_tokens: int, base: Base) -> None:
    """UsageError where views could be longer than the decoder has positions."""
    if base.max_positions is not None and max_tokens > base.max_positions:
        raise UsageError(
            f"max_tokens {max_tokens} is more than the base's {base.max_positions} positions",
            where="train.max_tokens",
            cure=f"Pass --max-tokens {base.max_positions}.",
        )


def build_encoder(recipe: Recipe, task: Task, base: Base) -> ViewEncoder:
    """The input transform of the recipe over the base's tokens."""
    check_max_tokens(recipe.train.max_tokens, base)
    return ViewEncoder(
        task.format,
        base.task_tokens.tokenize,
        base.task_tokens.special_tokens,
        recipe.train.max_tokens,
    )


def encode_split(
    recipe: Recipe,
    task: Task,
    base: Base,
    name: str,
    *,
    data: DataConfig | None = None,
    labelled: bool = True,
) -> Split:
    """Reads, checks and encodes a split; encoded rows are kept in the user's cache.

    Raises UsageError or RowError for what cannot be read, with file, line and cure.
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
    encoder = build_encoder(recipe, task, base)
    key = _key(recipe, base, fingerprint, name, labelled) if task.read is None else None
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


def encode_training_split(recipe: Recipe, task: Task, base: Base) -> Split:
    """The rows that are trained on: `train.fraction` of the split that `data.train` names.

    UsageError where it names none.
    """
    if recipe.data.train is None:
        raise UsageError("nothing to train on", where="data.train", cure="Name a split or a file.")
    split = encode_split(recipe, task, base, recipe.data.train)
    if recipe.train.fraction == 1:
        return split
    store, part = split.examples, recipe.train
    rows = draw_fraction(store.labels, part.fraction, part.seed, classes=store.whole)
    return split._replace(examples=store.select(rows))


def cache_folder() -> Path:
    """Where encoded rows are kept between runs: $GPTFT_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptft"
    return Path(os.environ.get("GPTFT_CACHE", default))


def _key(recipe: Recipe, base: Base, fingerprint: str, name: str, labelled: bool) -> str | None:
    """All that the encoded rows depend on; None where the tokenizer cannot be told from others."""
    backend = getattr(base.task_tokens.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = [
        fingerprint,
        name,
        labelled,
        recipe.task.model_dump_json(exclude={"prompt", "prompts", "metrics", "select", "positive"}),
        hashlib.sha256(backend.to_str().encode()).hexdigest(),
        list(base.task_tokens.special_tokens),
        recipe.train.max_tokens,
        recipe.data.limit,
        recipe.data.on_bad_row,
    ]
    return json.dumps(parts)
