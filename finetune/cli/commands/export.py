"""`gptft export`."""

from pathlib import Path
from typing import Literal

from typer import Option

from finetune.cli.commands.evaluate import check_run_exists
from finetune.cli.console import format_count, print_line, show_status, silence_libraries
from finetune.cli.options import PythonTask, Run, Trust

_FORMATS = Literal[
    "sequence-classification", "token-classification", "standalone", "onnx", "adapter"
]


def export(
    run: Run,
    to: _FORMATS = Option("sequence-classification", help="Format to write."),
    output: Path = Option(..., "--output", "-o", metavar="FOLDER", help="Folder to create."),
    precision: Literal["fp32", "bf16"] = Option("fp32", help="Precision of the exported weights."),
    check: str | None = Option(
        None, metavar="FILE", help="Rows to compare logits on.", show_default="evaluation split"
    ),
    task: PythonTask = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write a run in a format that other programs read.

    Example: gptft export runs/sst2 --to sequence-classification -o sst2

    Another process then loads the folder without gptft, and its logits must equal gptft's own.
    """
    check_run_exists(run)
    silence_libraries()
    with show_status(f" exporting {run}"):
        from finetune.cli.task_sources import find_python_task
        from finetune.export.exporter import export_run

        verification = export_run(
            run,
            to,
            output,
            precision=precision,
            check=check,
            task=find_python_task(task),
            trust_remote_code=trust_remote_code,
        )
    compared = verification.rows - verification.cut_differently
    print_line(
        f"Loaded without gptft: logits of {format_count(compared, 'row')} differ by at most ",
        (f"{verification.max_difference:.1e}", "green"),
        ".",
    )
    if verification.cut_differently:
        rows = format_count(verification.cut_differently, "row")
        print_line(
            ("note: ", "yellow"),
            f"{rows} not compared: transformers cuts long pairs up to one token differently.",
        )
    print_line(f"Wrote {to} to ", (str(output), "bold"), ".")
