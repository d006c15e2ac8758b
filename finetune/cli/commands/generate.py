"""`gptft generate`."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from typer import Argument, Context, Option

from finetune.cli.console import console, get_rank, show_status, silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import BASE_HELP, Device, NumProcesses, Output, Trust
from task_formats import Row, RowError, UsageError

if TYPE_CHECKING:
    from finetune.data import RowLocation
    from finetune.prompting.generation import DecodingOptions, TextGenerator

_GENERATED = "generated"
"""The column that is added."""


def generate(
    context: Context,
    texts: list[str] = Argument([], metavar="TEXT", help="One or more prompts."),
    base: str = Option("tiny", help=BASE_HELP),
    file: str | None = Option(None, "--file", "-f", metavar="FILE", help="File of prompts."),
    column: str = Option("text", help="Column of the prompts."),
    output: Output = "-",
    max_new_tokens: int = Option(100, help="Maximum number of new tokens."),
    temperature: float = Option(0.0, help="Temperature; 0 is greedy decoding."),
    top_k: int = Option(0, help="Top-k sampling; 0 turns it off."),
    top_p: float = Option(1.0, help="Top-p (nucleus) sampling."),
    beams: int = Option(1, help="Beam width."),
    length_penalty: float = Option(0.6, help="Length penalty of beam search."),
    seed: int = Option(0, help="Random seed."),
    batch_size: int = Option(8, min=1, max=2**16, help="Batch size in rows."),
    device: Device = None,
    trust_remote_code: Trust = False,
    num_processes: NumProcesses = 1,
) -> None:
    """Generate text from a prompt or from the rows of a file.

    Example: gptft generate "It was a dark night" --base tiny --temperature 0.8
    """
    silence_libraries()
    from finetune.prompting.generation import DecodingOptions, TextGenerator
    from finetune.recipe.schema import BaseConfig

    decoding = DecodingOptions(
        max_new_tokens, temperature, top_k, top_p, beams, length_penalty, seed
    )
    if bool(texts) == (file is not None):
        what = "both texts and a file of prompts" if texts else "no prompt given"
        raise UsageError(what, cure="Give texts, or --file FILE.")
    if num_processes > 1 and file in (None, "-"):
        raise UsageError("--num-processes needs a file of prompts", cure="Give --file FILE.")
    writes_rows = file is not None or output != "-"
    prompts = _open_prompts(texts, file, column, output) if writes_rows else None
    launch_processes(context, num_processes)
    with show_status(f" loading {base}"):
        config = BaseConfig(path=base, trust_remote_code=trust_remote_code)
        generator = TextGenerator(config, device)
    if prompts is None:
        for text in texts:
            _print_text(generator, text, decoding)
    else:
        pairs = generator.generate_rows(prompts.rows, column, decoding, batch_size)
        _write_rows(pairs, prompts, output)


class _Prompts(NamedTuple):
    """Rows with prompts, and how they are written."""

    rows: "Iterator[tuple[RowLocation, Row]]"
    columns: list[str]
    output_format: str


def _open_prompts(texts: Sequence[str], file: str | None, column: str, output: str) -> _Prompts:
    """Opens the texts, or a file of prompts, and checks the columns and the output."""
    from finetune.cli.output_rows import choose_format, find_columns
    from finetune.data import RowLocation, open_file

    default = "jsonl" if output == "-" else None
    output_format = choose_format(output, default, source=file or "-")
    located: Iterable[Any] = (
        ((RowLocation("TEXT", n), {column: text}) for n, text in enumerate(texts, 1))
        if file is None
        else open_file(file, format="jsonl" if file == "-" else None)
    )
    columns, rows = find_columns(_check_rows(located, column))
    if not columns:
        raise UsageError("the file has no rows", where=file or "", cure="Add a row.")
    if _GENERATED in columns:
        what = f"the rows already have a column {_GENERATED!r}"
        raise UsageError(what, where=file or "", cure="Rename it in the input.")
    return _Prompts(rows, columns, output_format)


def _print_text(generator: "TextGenerator", text: str, decoding: "DecodingOptions") -> None:
    """Prints a text and its continuation while it is generated."""
    out = console()
    pieces = generator.stream(text, decoding)  # Checks the length before the text is shown.
    out.out(text, end="", style="bold", highlight=False)
    for piece in pieces:
        out.out(piece, end="", highlight=False)
    out.out("")


def _write_rows(pairs: "Iterable[tuple[Row, str]]", prompts: _Prompts, output: str) -> None:
    """Writes every row with its continuation."""
    from finetune.data import write_rows

    if get_rank() > 0:
        # Takes part in every batch; the first process writes.
        deque(pairs, maxlen=0)
        return
    columns = [*prompts.columns, _GENERATED]
    with write_rows(output, columns, format=prompts.output_format) as writer:
        for row, generated in pairs:
            writer.write({**row, _GENERATED: generated})


def _check_rows(
    rows: "Iterable[tuple[RowLocation, Row]]", column: str
) -> "Iterator[tuple[RowLocation, Row]]":
    """The rows; RowError at one without a prompt."""
    for location, row in rows:
        if not isinstance(row.get(column), str | int | float):
            what = f"no text in column {column!r}"
            cure = f"Name the column of the prompts with --column: {', '.join(row)}."
            raise RowError(what, where=str(location), cure=cure)
        yield location, row
