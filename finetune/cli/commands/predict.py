"""Verbs that use a run: evaluate and predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from finetune.cli.console import console, print_line, quiet_libraries
from finetune.cli.options import Device, Trust
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as runs/rte.")]
PythonTask = Annotated[
    str | None, typer.Option("--task", "-t", help="Its module:name, if Python made it.")
]


def evaluate(
    run: Run,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A split or a file; else all that training scored."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder with a local copy of the data, or a hub id.")
    ] = None,
    task: PythonTask = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Score a run on the splits of its data.

    Example: gptft evaluate runs/mnli --split validation_mismatched
    """
    predictor = _load(run, task, device, trust_remote_code)
    from finetune.checkpointing.run_folder import read_result
    from finetune.cli.run_display import score_table
    from finetune.cli.task_sources import seen_from_here, split_of
    from finetune.recipe.loading import override_recipe

    recipe = predictor.recipe
    if data is not None:
        recipe = override_recipe(recipe, {"data.path": seen_from_here("data.path", data)})
    names = split or list(read_result(run)["scores"]) or ["evaluate"]
    with console(stderr=True).status(Text(f" scoring {', '.join(names)}")):
        splits = {name: split_of(recipe.data, name) for name in names}
        scores = {name: predictor.evaluate(split, recipe.data) for name, split in splits.items()}
    console().print(score_table(scores))


def predict(
    run: Run,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="CSV, TSV, JSONL or Parquet; - is standard input.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="A file; - is standard output.")
    ] = "-",
    input_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="csv, tsv, jsonl, json or parquet.")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="The same; else as OUT is called, or FILE.")
    ] = None,
    on_bad_row: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do at an unusable row.")
    ] = "stop",
    task: PythonTask = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Label the rows of a file: its columns, then a label and every class's probability.

    Example: gptft predict runs/rte pairs.csv -o labelled.csv

    Example: cat pairs.jsonl | gptft predict runs/rte - --input-format jsonl
    """
    from finetune.cli.output_columns import choose_format, keep_apart
    from finetune.data import open_file

    if file == "-" and input_format is None:
        cure = "Name it: --input-format csv (or tsv, jsonl, json, parquet)."
        raise UsageError("standard input has no name that tells its format", cure=cure)
    rows = open_file(file, format=input_format)
    kind = choose_format(
        output, output_format or (rows.batch_config.format if output == "-" else None)
    )
    keep_apart(file, output)
    predictor = _load(run, task, device, trust_remote_code)
    from finetune.cli.label_rows import label_rows

    counted = label_rows(predictor, rows, output, kind, skip=on_bad_row == "skip")
    where = "standard output" if output == "-" else output
    print_line(f"Labelled {counted.labelled:,} rows into {where}.", stderr=True)
    for place, what in counted.skipped:
        print_line(("left out: ", "yellow"), f"{place}: {what}", stderr=True)


def _load(run: Path, task: str | None, device: str | None, trust: bool) -> "Predictor":
    quiet_libraries()
    with console(stderr=True).status(Text(f" loading {run}")):
        from finetune.cli.task_sources import find
        from finetune.evaluation.predictor import load

        own = find(task, {}).task if task else None
        return load(run, device, task=own, trust_remote_code=trust)
