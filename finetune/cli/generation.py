"""The verb generate."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from finetune.cli.screen import console, quiet_libraries
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.prompting.generation import Decoding, Writer


def generate(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts to go on with.")
    ] = None,
    base: Annotated[
        str, typer.Option("--base", help="A hub id, a local folder, a run's folder, or tiny.")
    ] = "tiny",
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Rows of texts instead.")
    ] = None,
    column: Annotated[str, typer.Option(help="The column of the texts.")] = "text",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Rows written together.")] = 8,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu or cuda.")] = None,
) -> None:
    """Go on with a text.

    Example: gptft generate "It was a dark night" --base tiny --temperature 0.8
    """
    quiet_libraries()
    from finetune.prompting.generation import Decoding, Writer
    from finetune.recipe import BasePart

    decoding = Decoding(max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed)
    with console(stderr=True).status(Text(f" loading {base}")):
        writer = Writer(BasePart(path=base), device)
    if file is not None:
        _generate_rows(writer, decoding, file, column, output, batch_size)
        return
    if not texts:
        raise UsageError("nothing to go on with", cure="Give a text, or --file FILE.")
    for text in texts:
        _show(text, writer.stream(text, decoding))


def _show(text: str, pieces: Iterator[str]) -> None:
    """A text and what is written after it, as it comes."""
    out = console()
    out.out(text, end="", style="bold", highlight=False)
    for piece in pieces:
        out.out(piece, end="", highlight=False)
    out.out("")


def _generate_rows(
    writer: "Writer", decoding: "Decoding", file: str, column: str, output: str, size: int
) -> None:
    from finetune.data import format_of, open_file, write_rows

    rows = iter(open_file(file, format="jsonl" if file == "-" else None))
    kind = format_of(output, "jsonl" if output == "-" else None)
    first = list(islice(rows, size))
    columns = list(dict.fromkeys(name for _, row in first for name in row))
    if column not in columns:
        raise UsageError(
            f"no column {column!r} in {file}", cure=f"Name it with --column: {columns}."
        )
    with write_rows(output, [*columns, "generated"], format=kind) as sink:
        while first:
            written = writer.write([str(row[column]) for _, row in first], decoding)
            for (_, row), text in zip(first, written, strict=True):
                sink.write({**row, "generated": text})
            first = list(islice(rows, size))
