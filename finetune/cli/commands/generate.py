"""`gptft generate`."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text
from typer import Argument, Context, Option

from finetune.cli.console import console, get_rank, silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import BASE_HELP, Device, NumProcesses, Output, Trust, refuse_options
from task_formats import Row, RowError, UsageError

if TYPE_CHECKING:
    from finetune.data import RowLocation

_BATCH_SIZE = 8
_GENERATED = "generated"
"""The column that is added."""


def generate(
    context: Context,
    texts: list[str] | None = Argument(None, metavar="TEXT", help="One or more prompts."),
    base: str = Option("tiny", help=BASE_HELP),
    file: str | None = Option(None, "--file", "-f", metavar="FILE", help="File of prompts."),
    column: str | None = Option(None, help="Column of the prompts.", show_default="text"),
    output: Output = "-",
    max_new_tokens: int = Option(100, help="Maximum number of new tokens."),
    temperature: float = Option(0.0, help="Temperature; 0 is greedy decoding."),
    top_k: int = Option(0, help="Top-k sampling; 0 turns it off."),
    top_p: float = Option(1.0, help="Top-p (nucleus) sampling."),
    beams: int = Option(1, help="Beam width."),
    length_penalty: float = Option(0.6, help="Length penalty of beam search."),
    seed: int = Option(0, help="Random seed."),
    batch_size: int | None = Option(
        None, min=1, max=2**16, help="Batch size in rows.", show_default=str(_BATCH_SIZE)
    ),
    device: Device = None,
    trust_remote_code: Trust = False,
    num_processes: NumProcesses = 1,
) -> None:
    """Generate text from a prompt or from the rows of a file.

    Example: gptft generate "It was a dark night" --base tiny --temperature 0.8
    """
    silence_libraries()
    from finetune.data import write_rows
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
    if file is None and output == "-":
        rows_only = {"--column": column, "--batch-size": batch_size}
        refuse_options(rows_only, "only applies to rows of a file", cure="Give --file or -o.")
        prompts = None
    else:
        prompts = _open_prompts(texts or (), file, column or "text", output)
    launch_processes(context, num_processes)
    with console(stderr=get_rank() == 0).status(Text(f" loading {base}")):
        config = BaseConfig(path=base, trust_remote_code=trust_remote_code)
        generator = TextGenerator(config, device)
    if prompts is None:
        for text in texts or ():
            _print_generated(text, generator.stream(text, decoding))
        return
    pairs = generator.generate_rows(
        prompts.rows, prompts.column, decoding, batch_size or _BATCH_SIZE
    )
    if get_rank() > 0:
        # Takes part in every batch; the first process writes.
        deque(pairs, maxlen=0)
        return
    columns = [*prompts.columns, _GENERATED]
    with write_rows(output, columns, format=prompts.output_format) as writer:
        for row, text in pairs:
            writer.write({**row, _GENERATED: text})


def _print_generated(text: str, pieces: Iterable[str]) -> None:
    """Prints a prompt and the generated text as it comes."""
    out = console()
    out.out(text, end="", style="bold", highlight=False)
    for piece in pieces:
        out.out(piece, end="", highlight=False)
    out.out("")


class PromptRows(NamedTuple):
    """Rows with a prompt in one of their columns."""

    rows: "Iterator[tuple[RowLocation, Row]]"
    columns: list[str]
    column: str
    output_format: str


def _open_prompts(texts: Sequence[str], file: str | None, column: str, output: str) -> PromptRows:
    """Opens the rows of a file, or makes a row of each text."""
    from finetune.cli.output_columns import check_differs, choose_format, find_columns
    from finetune.data import RowLocation, open_file

    output_format = choose_format(output, "jsonl" if output == "-" else None)
    located: Iterable[tuple[RowLocation, Any]]
    if file is None:
        located = ((RowLocation("TEXT", n), {column: text}) for n, text in enumerate(texts, 1))
    else:
        check_differs(file, output)
        located = open_file(file, format="jsonl" if file == "-" else None)
    columns, rows = find_columns(_check_rows(located, column))
    if not columns:
        raise UsageError("the file has no rows", where=file or "", cure="Add a row.")
    if _GENERATED in columns:
        what = f"the rows already have a column {_GENERATED!r}"
        raise UsageError(what, where=file or "", cure="Rename it in the input.")
    return PromptRows(rows, columns, column, output_format)


def _check_rows(
    rows: "Iterable[tuple[RowLocation, Row]]", column: str
) -> "Iterator[tuple[RowLocation, Row]]":
    """The rows; RowError at one without a prompt."""
    for location, row in rows:
        if column not in row:
            cure = f"Name it with --column: {', '.join(row)}."
            raise RowError(f"no column {column!r}", where=str(location), cure=cure)
        if not isinstance(row[column], str | int | float):
            what = f"no text in column {column!r}: {row[column]!r:.40}"
            raise RowError(what, where=str(location), cure="Give every row a text.")
        yield location, row
