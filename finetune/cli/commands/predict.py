"""`gptft predict`."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Context, Option

from finetune.cli.commands.evaluate import load_predictor
from finetune.cli.console import format_count, get_rank, print_line
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    FILE_FLAGS,
    Calibrated,
    Data,
    Device,
    NumProcesses,
    Overrides,
    Precision,
    PythonTask,
    Run,
    Trust,
    parse_shard,
    with_recipe_flags,
)
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.cli.output_files import OutputFile
    from finetune.data import ReadReport
    from finetune.evaluation.predictor import Predictor
    from finetune.recipe.schema import Recipe
    from task_formats import Task


@partial(with_recipe_flags, flags=FILE_FLAGS, with_set=False)
def predict(
    context: Context,
    overrides: Overrides,
    run: Run,
    files: list[str] | None = Argument(
        None,
        metavar="FILE|FOLDER",
        help="What to label; - is standard input.",
        show_default="data.predict of the recipe",
    ),
    output: str = Option(
        "-", "--output", "-o", metavar="OUT", help="Output file or folder; - is standard output."
    ),
    split: str | None = Option(None, help="A split of the folder, or of the recipe's data."),
    data: Data = None,
    limit: int | None = Option(None, min=1, help="Label only the first rows of each input."),
    output_format: str | None = Option(None, help="csv, tsv, jsonl, json or parquet."),
    on_bad_row: Literal["stop", "skip"] = Option(
        "skip", help="Give an unusable row no label and an error, or stop there."
    ),
    resume: bool = Option(False, "--resume", help="Go on with an interrupted output."),
    overwrite: bool = Option(False, "--overwrite", help="Start an interrupted output over."),
    shard: str | None = Option(None, metavar="I/N", help="Label only every Nth file: 1/N to N/N."),
    num_processes: NumProcesses = 1,
    calibrated: Calibrated = False,
    task: PythonTask = None,
    device: Device = None,
    precision: Precision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Label the rows of files or of a split.

    Example: gptft predict runs/rte pairs.csv -o labelled.csv

    Adds the predicted label and the probability of each class to every row.

    Example: cat pairs.jsonl | gptft predict runs/rte - --input-format jsonl

    Example: gptft predict runs/rte 'parts/*.parquet' -o labelled/ --num-processes 2

    A folder is a copy of the data set (see --split), or holds files that are all labelled.
    """
    from finetune.checkpointing.fingerprint import fingerprint_run
    from finetune.data.partial_output import check_folder

    if resume and overwrite:
        cure = "Use --resume to go on, or --overwrite to start over."
        raise UsageError("--resume and --overwrite exclude each other", cure=cure)
    files = files or []
    if data is not None:
        overrides = {**overrides, "data.path": data}
    recipe, python_task = _load_recipe(run, overrides, task, trust_remote_code)
    kind, resolved = overrides.get("data.format"), recipe.task.resolve(python_task)
    outputs = _plan(recipe, resolved, files, split, output, kind, output_format)
    is_found = not files or any(Path(name).expanduser().is_dir() for name in files)
    if is_found and len(outputs) == 1 and get_rank() == 0:
        print_line(("reading ", "dim"), outputs[0].rows.origin, stderr=True)
    into_folder = len(outputs) > 1 or outputs[0].path != output
    if shard is not None and not into_folder:
        what = "--shard deals files, and there is one output"
        raise UsageError(what, cure="Give a folder or a pattern of files, and -o FOLDER/.")
    if num_processes > 1 and "-" in files:
        raise UsageError("--num-processes cannot share standard input", cure="Give a file.")
    # In a folder, one bad file does not cost the others.
    independent = into_folder and on_bad_row == "skip"
    launch_processes(context, num_processes, independent=independent)
    made_from = {"the run": fingerprint_run(run), "--calibrated": calibrated}
    if into_folder:
        outputs, device = _deal(outputs, shard, device)
        check_folder(Path(output), made_from, resume=resume)
    if resume:
        # A folder of outputs has a record of its run.
        outputs = _skip_done(outputs, None if into_folder else run)
    if not outputs:
        return
    predictor = load_predictor(
        run, task, device, trust_remote_code, calibrated=calibrated, precision=precision
    )
    options: dict[str, Any] = {
        "on_bad_row": on_bad_row,
        "limit": limit,
        "resume": resume,
        "overwrite": overwrite,
        "made_from": {**made_from, "the precision": predictor.precision},
        "is_writer": into_folder or get_rank() == 0,
    }
    _label_files(predictor, outputs, independent=independent, **options)


def _skip_done(outputs: "Sequence[OutputFile]", run: Path | None) -> "list[OutputFile]":
    """Returns the outputs that are not complete; UsageError if the input or the run is newer."""
    from finetune.cli.output_files import is_done

    # A run, and one that was downloaded.
    names = ("model/head.safetensors", "head.safetensors", "recipe.yaml")
    model = [run / name for name in names] if run else []
    pending = [file for file in outputs if not is_done(file, model)]
    if done := len(outputs) - len(pending):
        print_line(f"{format_count(done, 'output')} complete already.", stderr=True)
    return pending


def _label_files(
    predictor: "Predictor", outputs: "Sequence[OutputFile]", *, independent: bool, **options: Any
) -> None:
    """Labels the rows of outputs; raises UsageError at the first error, or in the end."""
    failed: list[UsageError] = []
    for file in outputs:
        try:
            _label_file(predictor, file, **options)
        except UsageError as error:
            if not independent:
                raise
            failed.append(error)
            print_line(("failed: ", "red"), error.headline, stderr=True)
    if failed:
        count, first = format_count(len(failed), "file"), failed[0]
        what = f"{count} of {len(outputs)} failed; the first: {first.headline}"
        raise UsageError(what, cure=first.cure)


def _label_file(
    predictor: "Predictor", file: "OutputFile", *, is_writer: bool, **options: Any
) -> None:
    """Labels the rows of one output, with progress, and prints how many there were."""
    from finetune.cli.output_rows import label_rows
    from finetune.cli.progress_display import show_progress

    if is_writer and file.path != "-":
        Path(file.path).parent.mkdir(parents=True, exist_ok=True)
    # Rows in a terminal are progress enough.
    quiet = file.path == "-" and sys.stdout.isatty()
    with _hint_at_part(file), nullcontext() if quiet else show_progress():
        report = label_rows(
            predictor, file.rows, file.path, file.format, is_writer=is_writer, **options
        )
    if is_writer:
        _print_report(report, file)


def _load_recipe(
    run: Path, overrides: Overrides, task: str | None, trust: bool
) -> "tuple[Recipe, Task | None]":
    """The recipe of a run and its task if that is defined in Python, without importing torch."""
    from finetune.cli.task_sources import find_python_task
    from finetune.recipe.loading import load_recipe, override_recipe, resolve_paths

    if not (run / "recipe.yaml").is_file():
        if not run.exists():
            raise UsageError("no such run directory", where=str(run), cure="Check the path.")
        from finetune.checkpointing.run_folder import read_recipe

        read_recipe(run)  # Says what is wrong.
    recipe = load_recipe(run / "recipe.yaml", {"base.trust_remote_code": True} if trust else {})
    if overrides:
        recipe = resolve_paths(override_recipe(recipe, overrides), Path.cwd())
    return recipe, find_python_task(task)


def _plan(
    recipe: "Recipe",
    task: "Task",
    sources: Sequence[str],
    split: str | None,
    output: str,
    input_format: str | None,
    output_format: str | None,
) -> "list[OutputFile]":
    from finetune.cli.output_files import has_known_ending, is_folder, plan_outputs
    from finetune.cli.task_sources import find_split
    from finetune.data.inputs import open_inputs

    if "-" in sources and input_format is None:
        cure = "Name it: --input-format csv (or tsv, jsonl, json, parquet)."
        raise UsageError("the format of standard input is unknown", cure=cure)
    if split is not None:
        update = {"path": sources[0]} if sources else {}
        split = find_split(recipe.data.model_copy(update=update), split)
    inputs = open_inputs(recipe.data, task, sources, split=split, format=input_format)
    several = len(inputs) > 1 and not has_known_ending(output) and output != "-"
    into_folder = is_folder(output) or (several and output_format is None)
    return plan_outputs(inputs, output, output_format, into_folder=into_folder)


def _deal(
    outputs: "list[OutputFile]", shard: str | None, device: str | None
) -> "tuple[list[OutputFile], str | None]":
    """The files and the device of this process, which then works without the others of its job."""
    number, count = parse_shard(shard) if shard else (1, 1)
    outputs = outputs[number - 1 :: count]
    processes = int(os.environ.pop("WORLD_SIZE", "1"))
    local_rank = int(os.environ.pop("LOCAL_RANK", "0"))
    if processes > 1 and device is None:
        from finetune.distributed.hardware import list_devices

        devices = list_devices()
        device = devices[local_rank % len(devices)].name
    return outputs[get_rank() :: processes], device


@contextmanager
def _hint_at_part(file: "OutputFile") -> Iterator[None]:
    """Says where the rows are that were written before an error or a signal."""
    from finetune.cli.output_files import describe_part
    from finetune.data.partial_output import name_part

    try:
        yield
    except UsageError as error:
        hint = describe_part(file.path)
        if hint and error.where != str(name_part(file.path)):
            cure = f"{error.cure}\n{hint}".strip()
            raise type(error)(error.what, where=error.where, cure=cure) from error
        raise
    except (KeyboardInterrupt, SystemExit):
        if hint := describe_part(file.path):
            print_line(("note: ", "yellow"), hint, stderr=True)
        raise


def _print_report(report: "ReadReport", file: "OutputFile") -> None:
    """Prints how many rows were labelled, and which were not."""
    target = "standard output" if file.path == "-" else file.path
    print_line(f"Labelled {format_count(report.examples, 'row')} into {target}.", stderr=True)
    if report.num_skipped:
        count = format_count(report.num_skipped, "row")
        text = f"{count} without a label; the column error has the reason"
        print_line(("warning: ", "yellow"), text, stderr=True)
    for bad in report.skipped:
        print_line(("  no label: ", "yellow"), f"{bad.location}: {bad.reason}", stderr=True)
    if report.more_skipped:
        print_line("  and ", format_count(report.more_skipped, "more row"), stderr=True)
