"""`gptft predict`."""

from typing import Literal

from typer import Argument, Option

from finetune.cli.commands.evaluate import load_predictor
from finetune.cli.console import format_count, print_line
from finetune.cli.options import Calibrated, Device, Output, PythonTask, Run, Trust
from task_formats import UsageError


def predict(
    run: Run,
    file: str = Argument(metavar="FILE", help="CSV, TSV, JSONL or Parquet; - is standard input."),
    output: Output = "-",
    input_format: str | None = Option(None, help="csv, tsv, jsonl, json or parquet."),
    output_format: str | None = Option(None, help="csv, tsv, jsonl, json or parquet."),
    on_bad_row: Literal["stop", "skip"] = Option("stop", help="Action on an unusable row."),
    calibrated: Calibrated = False,
    task: PythonTask = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Label the rows of a file.

    Example: gptft predict runs/rte pairs.csv -o labelled.csv

    Adds the predicted label and the probability of each class to every row.

    Example: cat pairs.jsonl | gptft predict runs/rte - --input-format jsonl
    """
    from finetune.cli.output_rows import choose_format, label_rows
    from finetune.data import open_file

    if file == "-" and input_format is None:
        cure = "Name it: --input-format csv (or tsv, jsonl, json, parquet)."
        raise UsageError("the format of standard input is unknown", cure=cure)
    rows = open_file(file, format=input_format)
    default = rows.options.format if output == "-" else None
    output_format = choose_format(output, output_format or default, source=file)
    predictor = load_predictor(run, task, device, trust_remote_code, calibrated=calibrated)
    report = label_rows(predictor, rows, output, output_format, on_bad_row=on_bad_row)
    target = "standard output" if output == "-" else output
    print_line(f"Labelled {format_count(report.examples, 'row')} into {target}.", stderr=True)
    for bad in report.skipped:
        print_line(("skipped: ", "yellow"), f"{bad.location}: {bad.reason}", stderr=True)
    if report.more_skipped:
        more = format_count(report.more_skipped, "more row")
        print_line(("skipped: ", "yellow"), more, stderr=True)
