"""The verb generate."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from finetune.cli.console import console, process, quiet_libraries
from finetune.cli.launcher import is_child, run_processes
from finetune.cli.options import Device, Processes, Trust
from task_formats import Row, RowError, UsageError

if TYPE_CHECKING:
    from finetune.data import RowLocation
    from finetune.prompting.generation import DecodingOptions, TextGenerator

_BATCH_SIZE = 8


class Page(NamedTuple):
    """Rows of texts to go on with, and where they go."""

    rows: "Iterator[tuple[RowLocation, Row]]"
    columns: list[str]
    column: str
    """That of the texts."""
    output: str
    kind: str


def generate(
    context: typer.Context,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to go on with.")
    ] = None,
    base: Annotated[
        str, typer.Option("--base", help="A hub id, a local folder, a run's folder, or tiny.")
    ] = "tiny",
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Rows of texts instead.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the texts; else text.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="A file; - is standard output.")
    ] = "-",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from this much probability.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Beam search of this width.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beam search.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=2**16, help=f"Rows written together; else {_BATCH_SIZE}."),
    ] = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    num_processes: Processes = 1,
) -> None:
    """Go on with a text, or with the rows of a file.

    Example: gptft generate "It was a dark night" --base tiny --temperature 0.8
    """
    quiet_libraries()
    from finetune.prompting.generation import DecodingOptions, TextGenerator
    from finetune.recipe.schema import BaseConfig

    if num_processes > 1 and file in (None, "-"):
        raise UsageError("several processes share the rows of a file", cure="Give --file FILE.")
    decoding = DecodingOptions(
        max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed
    )
    _check_texts(texts or (), file)
    page = None
    if file is None and output == "-":
        _refuse_given({"--column": column, "--batch-size": batch_size})
    else:
        page = _open_page(texts or (), file, column or "text", output)
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    with console(stderr=process() == 0).status(Text(f" loading {base}")):
        writer = TextGenerator(BaseConfig(path=base, trust_remote_code=trust_remote_code), device)
    if page is not None:
        _fill(page, writer, decoding, batch_size or _BATCH_SIZE)
        return
    for text in texts or ():
        _show(text, writer.stream(text, decoding))


def _check_texts(texts: Sequence[str], file: str | None) -> None:
    if texts and file is not None:
        what = "both texts and a file of texts to go on with"
        raise UsageError(what, cure="Give texts, or --file FILE.")
    if not texts and file is None:
        raise UsageError("nothing to go on with", cure="Give a text, or --file FILE.")


def _refuse_given(options: Mapping[str, object]) -> None:
    """UsageError where an option that is only about rows was given."""
    for option, value in options.items():
        if value is not None:
            what = f"{option} is about rows, and these texts are shown as they are written"
            cure = f"Leave {option} out, or give --file FILE or -o OUT."
            raise UsageError(what, cure=cure)


def _show(text: str, pieces: Iterator[str]) -> None:
    """A text and what is written after it, as it comes."""
    out = console()
    out.out(text, end="", style="bold", highlight=False)
    for piece in pieces:
        out.out(piece, end="", highlight=False)
    out.out("")


def _open_page(texts: Sequence[str], file: str | None, column: str, output: str) -> Page:
    """The rows of a file, or a row for each text. UsageError where they cannot be written."""
    from finetune.cli.output_columns import choose_format, find_columns, keep_apart
    from finetune.data import RowLocation, open_file

    kind = choose_format(output, "jsonl" if output == "-" else None)
    placed: Iterable[tuple[RowLocation, Any]]
    if file is None:
        placed = (
            (RowLocation("TEXT", number), {column: text}) for number, text in enumerate(texts, 1)
        )
    else:
        keep_apart(file, output)
        placed = open_file(file, format="jsonl" if file == "-" else None)
    columns, rows = find_columns(_with_text(placed, column))
    if not columns:
        raise UsageError("no rows to go on with", where=file or "", cure="The file needs rows.")
    if _ADDED in columns:
        what = f"the rows already have a column {_ADDED!r}"
        raise UsageError(what, where=file or "", cure="Rename it in the input.")
    return Page(rows, columns, column, output, kind)


_ADDED = "generated"


def _with_text(
    placed: "Iterable[tuple[RowLocation, Row]]", column: str
) -> "Iterator[tuple[RowLocation, Row]]":
    """The rows; RowError at one that has no text in the column."""
    for place, row in placed:
        if column not in row:
            cure = f"Name it with --column: {', '.join(row)}."
            raise RowError(f"no column {column!r}", where=str(place), cure=cure)
        if not isinstance(row[column], str | int | float):
            what = f"no text in column {column!r}: {row[column]!r:.40}"
            raise RowError(what, where=str(place), cure="Give every row a text.")
        yield place, row


def _fill(page: Page, writer: "TextGenerator", decoding: "DecodingOptions", size: int) -> None:
    """Writes every row with what comes after its text."""
    from finetune.data import write_rows

    pairs = writer.write_rows(page.rows, page.column, decoding, size)
    if process() > 0:
        # It has done its share of every batch when the pairs have all come.
        deque(pairs, maxlen=0)
        return
    with write_rows(page.output, [*page.columns, _ADDED], format=page.kind) as sink:
        for row, text in pairs:
            sink.write({**row, _ADDED: text})
