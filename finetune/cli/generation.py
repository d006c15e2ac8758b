"""The verb generate."""

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from finetune.cli.options import Processes
from finetune.cli.processes import is_child, run_processes
from finetune.cli.screen import console, process, quiet_libraries
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.prompting.generation import Decoding, Writer


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
    num_processes: Processes = 1,
) -> None:
    """Go on with a text.

    Example: gptft generate "It was a dark night" --base tiny --temperature 0.8
    """
    quiet_libraries()
    from finetune.prompting.generation import Decoding, Writer
    from finetune.recipe import BasePart

    if num_processes > 1 and file in (None, "-"):
        raise UsageError("several processes share the rows of a file", cure="Give --file FILE.")
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    decoding = Decoding(max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed)
    with console(stderr=process() == 0).status(Text(f" loading {base}")):
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

    rows = (row for _, row in open_file(file, format="jsonl" if file == "-" else None))
    kind = format_of(output, "jsonl" if output == "-" else None)
    first = list(islice(rows, size))
    columns = list(dict.fromkeys(name for row in first for name in row))
    if column not in columns:
        raise UsageError(
            f"no column {column!r} in {file}", cure=f"Name it with --column: {columns}."
        )
    pairs = writer.write_rows(chain(first, rows), column, decoding, size)
    if process() > 0:
        # It has done its share of every batch when the pairs have all come.
        deque(pairs, maxlen=0)
        return
    with write_rows(output, [*columns, "generated"], format=kind) as sink:
        for row, text in pairs:
            sink.write({**row, "generated": text})
