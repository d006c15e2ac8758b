"""What must hold for any bytes whatever: a function per target, which fails where it does not.

`run.py` feeds them inputs that reach new code; `tests/test_fuzz.py` feeds them what was found.
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
from finetune.recipe.loading import dump_recipe, override_recipe, parse_recipe
from finetune.recipe.schema import Recipe
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

# -- the readers of data ---------------------------------------------------------------------------

READINGS = (
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
    """The first byte says how the rest is read: format, and whether it is packed, and cut."""
    first, content = data[:1] or b"\0", data[1:]
    packing, way = divmod(first[0], len(READINGS))
    if packing % 4 == 1:
        content = gzip.compress(content, 1)
    elif packing % 4 == 2:
        content = gzip.compress(content, 1)[:-5]
    scan(content, READINGS[way], ".gz" if packing % 4 else "")


def check_parquet(data: bytes) -> None:
    """Bytes of a Parquet file."""
    scan(data, ReadOptions("parquet"))


def scan(content: bytes, options: ReadOptions, ending: str = "") -> None:
    """Rows come with their places and can be written again; or a UsageError says why not."""
    path = scratch(f"rows{ending}")
    path.write_bytes(content)
    last = 0
    try:
        for location, row in FileRows((path,), options).read():
            assert location.source == str(path)
            assert location.number >= last
            last = location.number
            if isinstance(row, RowError):
                assert row.what
            else:
                check_row(row)
    except UsageError as error:
        check_words(error)


def check_row(row: object) -> None:
    """A mapping from texts; no text with a NUL or half of a pair of surrogates."""
    assert isinstance(row, dict)
    assert all(isinstance(name, str) for name in row)
    for text in texts_of(row):
        assert "\0" not in text.encode().decode()


def texts_of(value: object) -> Iterator[str]:
    """Every text in a row, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_of([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_of(inner)


def check_words(error: UsageError) -> None:
    """One sentence that can be printed."""
    assert error.what
    assert error.headline.encode("utf-8", "backslashreplace")


@functools.cache
def scratch(name: str) -> Path:
    """A file that is written again and again."""
    return Path(_FOLDER.name, name)


def check_tensors(data: bytes) -> None:
    """Bytes of a file of tensors."""
    path = scratch("tensors.safetensors")
    path.write_bytes(data)
    try:
        found = read_tensors(path)
    except UsageError as error:
        check_words(error)
    else:
        assert sum(tensor.nbytes for tensor in found.values()) <= len(data) * max(len(found), 1)


# -- recipes ---------------------------------------------------------------------------------------


def check_recipe(data: bytes) -> None:
    """A text in YAML gives a recipe that survives being written, or one message."""
    try:
        recipe = parse_recipe(data.decode("utf-8", "surrogateescape"), "fuzz.yaml")
    except UsageError as error:
        check_words(error)
        return
    assert parse_recipe(dump_recipe(recipe)) == recipe
    recipe.task.build()


KEYS = (
    "train.epochs", "train.learning_rate", "train.layout", "task.labels", "task.columns.text",
    "task.metrics", "data.extra", "data.train", "base.lora", "base.lora.rank", "about", "task",
    "task.format.views", "task.prompt", "task.range", "train.patience", "nothing", "", ".", "a..b",
)  # fmt: skip

STANDARD = """
task:
  format: classification
  columns: {text: review, label: stars}
  labels: {0: bad, 1: good}
  metrics: [accuracy]
data: {train: train.csv, evaluate: dev.csv}
"""


@functools.cache
def standard() -> Recipe:
    """A recipe that is never changed itself."""
    return parse_recipe(STANDARD)


def check_overrides(data: bytes) -> None:
    """Values of a command line for a good recipe: lines, each after a byte that names its key."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    changes = {KEYS[ord(line[0]) % len(KEYS)]: line[1:] for line in lines if line}
    try:
        recipe = override_recipe(standard(), changes)
    except UsageError as error:
        check_words(error)
        return
    assert parse_recipe(dump_recipe(recipe)) == recipe


# -- the encoder -----------------------------------------------------------------------------------

SPECIALS = SpecialTokens(0, 1, 2)
LAYOUTS = {
    **FORMATS,
    "thrice": Format((("{first}", "{second}", "{first}"),)),
    "apart": Format((("{first}",), ("{second}", "{text}"), ("{text}",))),
    "words": Format((("{first} and {second}", "so: {text}"),)),
    "triple": Format((("{context}", "{first}", "{choice}"),)),
}
LABELS = (Classes.of({0: "no", 1: "so", 2: "yes", 3: "4th"}), Range(0, 5))


def characters(texts: Sequence[str]) -> list[list[int]]:
    """A token per character, never a special one; blanks vanish, so some texts have no token."""
    return [[3 + ord(letter) for letter in text if letter != " "] for text in texts]


@functools.cache
def task_tokens():
    """The tokens of the base that is shipped."""
    from finetune.models.pretrained import load_task_tokens
    from finetune.recipe.schema import BaseConfig

    return load_task_tokens(BaseConfig(path="tiny"))


def check_encoder(data: bytes) -> None:
    """Three bytes choose format, labels, tokens and limit; lines of the rest are a row's texts."""
    one, two, most = (*data[:3], 0, 0, 0)[:3]
    name = sorted(LAYOUTS)[one % len(LAYOUTS)]
    kind, whole = LAYOUTS[name], bool(two & 1)
    lines = data[3:].decode("utf-8", "surrogateescape" if two & 2 else "replace").split("\n")
    fields = {field: lines[k % len(lines)] for k, field in enumerate(kind.fields)}
    label, *choices = lines
    row = {**fields, "choices": choices, "label": label}
    columns = {field: field for field in kind.fields} | {"label": "label"}
    labels = LABELS[0] if kind.is_multiple_choice else LABELS[(two >> 2) & 1]
    tokenize = task_tokens().tokenize if whole else characters
    specials = task_tokens().special_tokens if whole else SPECIALS
    try:
        task = Task(
            kind, columns | ({"choices": "choices"} if kind.is_multiple_choice else {}), labels
        )
        example = task.example(row, "fuzz/0", labelled=bool(two & 8))
        encoder = ViewEncoder(kind, tokenize, specials, most)
        (encoded,) = encoder.encode([example])
    except UsageError as error:
        check_words(error)
        return
    check_views(kind, example, encoded, specials, most)
    full = ViewEncoder(kind, tokenize, specials, 10**9).encode([example])[0]
    assert full.truncated_tokens == 0
    assert (encoded.truncated_tokens == 0) == (encoded == full)


def check_views(
    kind: Format, example: Example, encoded: Encoded, specials: SpecialTokens, most: int
) -> None:
    """Every view fits, and S, D and E stand where the paper puts them."""
    views = [[*encoded.prefix, *ending] for ending in encoded.endings]
    layout = kind.render(example)
    assert (
        len(views)
        == len(layout)
        == (len(example.choices) if kind.is_multiple_choice else len(kind.views))
    )
    for view, texts in zip(views, layout, strict=True):
        assert len(view) <= most
        assert view[0] == specials.start
        assert view[-1] == specials.extract
        assert view.count(specials.start) == view.count(specials.extract) == 1
        assert view.count(specials.delimiter) == len(texts) - 1
    assert all(encoded.endings)
    if kind is FORMATS["similarity"]:
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
"""A folder per target: inputs that once failed, and some that reach far."""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
