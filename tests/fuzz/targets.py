"""Fuzz targets: functions that take any bytes and fail if a property does not hold.

`run.py` feeds them with coverage-guided inputs, tests/project/test_fuzz.py with saved inputs.
"""

import functools
import gzip
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finetune.data.readers.files import FileRows
from finetune.data.rows import ReadOptions
from finetune.recipe.loading import load_recipe, override_recipe, parse_recipe
from finetune.storage.tensors import read_tensors
from task_formats import (
    FORMATS,
    Classes,
    Encoded,
    Example,
    Format,
    Range,
    RowError,
    SpecialTokens,
    Task,
    UsageError,
    ViewEncoder,
)

_FOLDER = tempfile.TemporaryDirectory(prefix="gptft-fuzz-", ignore_cleanup_errors=True)

# -- readers -------------------------------------------------------------------------------------

OPTIONS = (
    ReadOptions("csv"),
    ReadOptions("tsv"),
    ReadOptions("jsonl"),
    ReadOptions("json"),
    ReadOptions("race"),
    ReadOptions("csv", columns=("a", "b")),
    ReadOptions("tsv", columns=("a", "b", "c"), min_fields=2),
    ReadOptions("jsonl", rename={"a": "b"}, nested={"c": "a.b", "d": {"e": "a"}}),
)


def check_rows(data: bytes) -> None:
    """A text file; the first byte selects its format, and whether it is gzipped and truncated."""
    first, content = data[:1] or b"\0", data[1:]
    packing, number = divmod(first[0], len(OPTIONS))
    if packing % 4 == 1:
        content = gzip.compress(content, 1)
    elif packing % 4 == 2:
        content = gzip.compress(content, 1)[:-5]
    scan(content, OPTIONS[number], ".gz" if packing % 4 else "")


def check_parquet(data: bytes) -> None:
    """A Parquet file."""
    scan(data, ReadOptions("parquet"))


def scan(content: bytes, options: ReadOptions, suffix: str = "") -> None:
    """Rows have increasing line numbers and texts without NUL and lone surrogates."""
    path = Path(_FOLDER.name, f"rows{suffix}")
    path.write_bytes(content)
    last_line = 0
    try:
        for location, row in FileRows((path,), options).read():
            assert location.source == str(path)
            assert location.number >= last_line
            last_line = location.number
            if isinstance(row, RowError):
                assert row.what
            else:
                assert isinstance(row, dict)
                assert all("\0" not in text.encode().decode() for text in texts_of(row))
    except UsageError as error:
        check_message(error)


def texts_of(value: object) -> Iterator[str]:
    """All texts in a row, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_of([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


def check_message(error: UsageError) -> None:
    """The message can be printed."""
    assert error.what
    assert error.headline.encode("utf-8", "backslashreplace")


def check_tensors(data: bytes) -> None:
    """A safetensors file."""
    path = Path(_FOLDER.name, "tensors.safetensors")
    path.write_bytes(data)
    try:
        tensors = read_tensors(path)
    except UsageError as error:
        check_message(error)
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data) * max(len(tensors), 1)


# -- recipes ---------------------------------------------------------------------------------------


def check_recipe(data: bytes) -> None:
    """YAML text is a recipe that survives a round trip, or one message."""
    try:
        recipe = parse_recipe(data.decode("utf-8", "surrogateescape"), "fuzz.yaml")
    except UsageError as error:
        check_message(error)
        return
    assert parse_recipe(recipe.to_yaml()) == recipe
    recipe.task.build()


KEYS = (
    "train.epochs", "train.learning_rate", "train.layout", "task.labels", "task.columns.label",
    "task.metrics", "data.extra", "data.train", "base.lora", "base.lora.rank", "about", "task",
    "task.format.views", "task.prompt", "task.range", "train.patience", "nothing", "", ".", "a..b",
)  # fmt: skip

standard = functools.cache(lambda: load_recipe("demo"))


def check_overrides(data: bytes) -> None:
    """Overrides of a valid recipe: one per line, the first byte selects the key."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    changes = {KEYS[ord(line[0]) % len(KEYS)]: line[1:] for line in lines if line}
    try:
        recipe = override_recipe(standard(), changes)
    except UsageError as error:
        check_message(error)
        return
    assert parse_recipe(recipe.to_yaml()) == recipe


# -- the encoder -----------------------------------------------------------------------------------

SPECIALS = SpecialTokens(0, 1, 2)
FORMAT_CASES = {
    **FORMATS,
    "thrice": Format((("{first}", "{second}", "{first}"),)),
    "apart": Format((("{first}",), ("{second}", "{text}"), ("{text}",))),
    "words": Format((("{first} and {second}", "so: {text}"),)),
    "triple": Format((("{context}", "{first}", "{choice}"),)),
}
LABELS = (Classes.of({0: "no", 1: "so", 2: "yes", 3: "4th"}), Range(0, 5))


def characters(texts: Sequence[str]) -> list[list[int]]:
    """One token per character, none for blanks, so that some texts have no tokens."""
    return [[3 + ord(letter) for letter in text if letter != " "] for text in texts]


@functools.cache
def task_tokens():
    """Tokenizer and special tokens of the shipped base."""
    from finetune.models.pretrained import load_task_tokens
    from finetune.recipe.schema import BaseConfig

    return load_task_tokens(BaseConfig(path="tiny"))


def check_encoder(data: bytes) -> None:
    """Three bytes select format, labels, tokenizer and limit; the rest are the texts of a row."""
    first, flags, max_tokens = (*data[:3], 0, 0, 0)[:3]
    name = sorted(FORMAT_CASES)[first % len(FORMAT_CASES)]
    case, shipped = FORMAT_CASES[name], bool(flags & 1)
    lines = data[3:].decode("utf-8", "surrogateescape" if flags & 2 else "replace").split("\n")
    fields = {field: lines[k % len(lines)] for k, field in enumerate(case.fields)}
    label, *choices = lines
    row = {**fields, "choices": choices, "label": label}
    columns = {field: field for field in case.fields} | {"label": "label"}
    labels = LABELS[0] if case.is_multiple_choice else LABELS[(flags >> 2) & 1]
    tokenize = task_tokens().tokenize if shipped else characters
    specials = task_tokens().special_tokens if shipped else SPECIALS
    if case.is_multiple_choice:
        columns["choices"] = "choices"
    try:
        task = Task(case, columns, labels)
        example = task.example(row, "fuzz/0", labelled=bool(flags & 8))
        encoder = ViewEncoder(case, tokenize, specials, max_tokens)
        (encoded,) = encoder.encode([example])
    except UsageError as error:
        check_message(error)
        return
    check_views(case, example, encoded, specials, max_tokens)
    full = ViewEncoder(case, tokenize, specials, 10**9).encode([example])[0]
    assert full.truncated_tokens == 0
    assert (encoded.truncated_tokens == 0) == (encoded == full)


def check_views(
    format: Format, example: Example, encoded: Encoded, specials: SpecialTokens, max_tokens: int
) -> None:
    """Every view fits, and S, D and E are at the positions of GPT-1, figure 1."""
    views = [[*encoded.prefix, *ending] for ending in encoded.endings]
    layout = format.render(example)
    count = len(example.choices) if format.is_multiple_choice else len(format.views)
    assert len(views) == len(layout) == count
    for view, texts in zip(views, layout, strict=True):
        assert len(view) <= max_tokens
        assert view[0] == specials.start
        assert view[-1] == specials.extract
        assert view.count(specials.start) == view.count(specials.extract) == 1
        assert view.count(specials.delimiter) == len(texts) - 1
    assert all(encoded.endings)
    if format is FORMATS["similarity"]:
        middle = [view[1:-1].index(specials.delimiter) for view in views]
        first, second = (
            (view[1 : 1 + at], view[2 + at : -1]) for view, at in zip(views, middle, strict=True)
        )
        assert first == second[::-1]
    assert (encoded.id, encoded.label) == (example.id, example.label)
    assert encoded.label is None or math.isfinite(encoded.label)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "rows": check_rows,
    "parquet": check_parquet,
    "tensors": check_tensors,
    "recipe": check_recipe,
    "overrides": check_overrides,
    "encoder": check_encoder,
}
FINDS = Path(__file__).parent / "finds"
"""One folder per target: inputs that once failed, and some that cover much code."""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
