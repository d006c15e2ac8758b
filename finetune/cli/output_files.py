"""Which file the predictions of every input go to, and which of them are done already."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.cli.output_rows import choose_format
from finetune.data import FileRows, Rows
from finetune.data.partial_output import name_part
from finetune.data.readers.files import (
    FORMATS,
    WRITTEN_FORMATS,
    detect_output_format,
    find_ending,
)
from finetune.data.rows import ConcatenatedRows
from task_formats import UsageError


class OutputFile(NamedTuple):
    """Rows to predict, and where they go."""

    rows: Rows
    path: str
    """A file, or - for standard output."""
    format: str

    @property
    def inputs(self) -> list[Path]:
        """The files that the rows are read from; empty for a data set of the hub."""
        parts = self.rows.parts if isinstance(self.rows, ConcatenatedRows) else (self.rows,)
        names = [file for part in parts if isinstance(part, FileRows) for file in part.files]
        return [Path(name) for name in names if str(name) != "-"]


def plan_outputs(
    inputs: Sequence[Rows], output: str, format: str | None, *, into_folder: bool
) -> list[OutputFile]:
    """Plans one file for all inputs, or one file for each in a folder.

    Args:
        inputs: What is predicted.
        output: A file, a folder, or - for standard output.
        format: The format of the output. [default: by its name, or the format of the input]
        into_folder: A name without a known ending is that of a folder.

    Raises:
        UsageError: A file cannot be written, or two inputs have the same output.
    """
    if not into_folder:
        default = _input_format(inputs[0]) if output == "-" else None
        rows = inputs[0] if len(inputs) == 1 else ConcatenatedRows(tuple(inputs))
        planned = [OutputFile(rows, output, choose_format(output, format or default))]
        _refuse_overwriting_inputs(planned)
        return planned
    # Outputs of an earlier command, in a folder inside that of the inputs, are no inputs.
    inputs = [rows for rows in inputs if not _is_below(rows, Path(output))] or inputs
    files = [OutputFile(rows, "", "").inputs for rows in inputs]
    singles = [str(paths[0].absolute().parent) for paths in files if len(paths) == 1]
    home = Path(os.path.commonpath(singles)) if singles else Path()
    planned = []
    for rows, paths in zip(inputs, files, strict=True):
        kind = detect_output_format(output, format or _input_format(rows))
        name = Path(f"predictions.{kind}")
        if len(paths) == 1:
            name = _rename(paths[0].absolute().relative_to(home), format)
        planned.append(OutputFile(rows, str(Path(output, name)), kind))
    names = [file.path for file in planned]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        what = f"two inputs have the same output {twice[0]}"
        raise UsageError(
            what, cure="Rename one of them, or name one output file for all: -o OUT.csv."
        )
    _refuse_overwriting_inputs(planned)
    return planned


def _is_below(rows: Rows, folder: Path) -> bool:
    paths = OutputFile(rows, "", "").inputs
    return any(folder.absolute() in path.absolute().parents for path in paths)


def is_folder(output: str) -> bool:
    """Whether -o names a folder: one that exists, or a name that ends in a slash."""
    return output != "-" and (output.endswith(("/", os.sep)) or Path(output).is_dir())


def has_known_ending(output: str) -> bool:
    """Whether a file name tells a format that is written."""
    return FORMATS.get(find_ending(output)) in WRITTEN_FORMATS


def _input_format(rows: Rows) -> str:
    """The format of the first file, if rows can be written in it."""
    part = rows.parts[0] if isinstance(rows, ConcatenatedRows) else rows
    kind = part.options.format if isinstance(part, FileRows) else "jsonl"
    return kind if kind in WRITTEN_FORMATS else "jsonl"


def _rename(path: Path, format: str | None) -> Path:
    """The name of an input with the ending of another format."""
    if format is None and has_known_ending(path.name):
        return path
    name, compressed = path.name, ""
    if name.lower().endswith((".gz", ".xz")):
        name, compressed = name[:-3], ".gz"
    return path.with_name(f"{Path(name).stem}.{format or 'jsonl'}{compressed}")


def _refuse_overwriting_inputs(planned: Sequence[OutputFile]) -> None:
    for file in planned:
        target = Path(file.path)
        for source in file.inputs:
            if file.path != "-" and target.exists() and source.exists() and target.samefile(source):
                cure = "Name another one with -o."
                raise UsageError(f"{file.path} is also the input file", cure=cure)


def is_done(file: OutputFile, made_from: Sequence[Path] = ()) -> bool:
    """Whether an output is complete.

    Raises:
        UsageError: An input, or another file that it was made from, has changed since.
    """
    target = Path(file.path)
    if file.path == "-" or not target.is_file() or name_part(target).exists():
        return False
    made = target.stat().st_mtime_ns
    for source in (*file.inputs, *made_from):
        if source.is_file() and source.stat().st_mtime_ns > made:
            what = f"cannot go on: {source} changed since this was made"
            raise UsageError(what, where=file.path, cure="Start over with --overwrite.")
    return True


def describe_part(path: str) -> str:
    """A hint at what an interrupted command leaves; empty if that is nothing."""
    part = name_part(path)
    if path == "-" or not part.is_file():
        return ""
    return f"What was done before is in {part}. Go on with --resume."
