"""Output that appears as it is made, in OUT.part, and that an interrupted command goes on with."""

import gzip
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from finetune.data.readers.files import detect_output_format
from finetune.data.writers import RowSink, TextSink, check_output, explain_write_errors, open_sink
from finetune.storage import files, json_files
from task_formats import UsageError

_STATE_FORMAT = "gptft unfinished output, version 1"
_RECORD_SECONDS = 1.0
"""Time between two records: a disk may need some hundredths of a second for each."""
_FOLDER_STATE = ".gptft-predict.json"
_START_OVER = "Start over with --overwrite."


class _State(NamedTuple):
    """How much of an unfinished file can be kept."""

    made_from: Mapping[str, Any]
    rows: int = 0
    """Rows of the input, from the first, whose output is complete."""
    digest: str = ""
    """SHA-256 of these rows."""
    size: int = 0
    """Bytes of their output."""


def name_part(path: Path | str) -> Path:
    """The name of an output until it is complete."""
    return Path(f"{path}.part")


def check_folder(folder: Path, made_from: Mapping[str, Any], *, resume: bool) -> None:
    """Records in a folder of outputs what they are made from, for those who `resume`.

    Raises:
        UsageError: Going on, they would be made from something else.
    """
    path, content = folder / _FOLDER_STATE, {"format": _STATE_FORMAT, **made_from}
    if resume and path.is_file():
        found = json_files.decode(files.read_regular_file(path), str(path))
        known = found if isinstance(found, dict) else {}
        if changed := [name for name in made_from if known.get(name) != content[name]]:
            raise changed_since(folder, changed)
    files.write_atomically(path, json_files.encode(content, indent=2))


class PartialOutput:
    """Writes rows; after `commit` they are kept whatever happens."""

    def __init__(self, sink: RowSink | None, part: "_PartFile | None", state: _State) -> None:
        self._sink, self._part, self._state = sink, part, state
        self.rows, self.digest = state.rows, state.digest
        """Rows of the input whose output is there already, and their digest."""
        self.is_empty = not state.rows

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row."""
        if self._sink:
            self._sink.write(row)
            self.is_empty = False

    def commit(self, rows: int, digest: str) -> None:
        """Records that the output of the first rows of the input, with this digest, is written."""
        if self._sink:
            self._sink.flush()
        if self._part:
            self._part.commit(self._state._replace(rows=rows, digest=digest))


@contextmanager
def open_partial_output(
    path: Path | str,
    columns: Sequence[str],
    *,
    format: str | None = None,
    made_from: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    is_writer: bool = True,
) -> Iterator[PartialOutput]:
    """Opens a file of rows that is called OUT.part until the block ends without an error.

    After an error, a signal or a kill OUT.part holds what was written, and OUT.part.state says how
    much of it is complete. Standard output, pipes and devices are written to directly. A .gz file
    has a member per commit, and the part of a Parquet file is an Arrow stream.

    Args:
        path: The file, or `-` for standard output.
        columns: Columns to write.
        format: A file ending such as csv; without it the name of the file decides.
        made_from: What the content depends on besides the input, by the name that messages use.
        resume: Go on with a part that is there.
        overwrite: Start over if there is one.
        is_writer: Whether this process writes; others of its job only see what is there already.

    Raises:
        UsageError: The file cannot be written; there is a part and neither `resume` nor
            `overwrite` is given; or it was made from something else.
    """
    kind, target = detect_output_format(path, format), Path(path)
    made_from = {**(made_from or {}), "the columns": list(columns)}
    is_stream = str(path) == "-" or (target.exists() and not target.is_file())
    if not is_writer:
        state = _State(made_from)
        yield PartialOutput(
            None, None, state if is_stream else _find_state(target, made_from, resume, overwrite)
        )
        return
    if is_stream:
        with open_sink(path, columns, kind) as sink:
            yield PartialOutput(sink, None, _State(made_from))
        return
    check_output(target)
    state = _find_state(target, made_from, resume, overwrite)
    with explain_write_errors(str(path)):
        part = _PartFile(target, state)
        sink = _open_part_sink(part, columns, kind)
        output = PartialOutput(sink, part, state)
        try:
            yield output
            sink.close(complete=True)
        except BaseException:
            # The first error says more than those that follow from it.
            with suppress(OSError, UsageError):
                sink.flush()
            with suppress(OSError, UsageError):
                part.close(keep=not output.is_empty)
            raise
        part.finish(kind)


def _find_state(
    target: Path, made_from: Mapping[str, Any], resume: bool, overwrite: bool
) -> _State:
    """The state to go on from; UsageError if there is a part that may not be touched."""
    part, found = name_part(target), _read_state(target)
    if overwrite or found is None or not found.rows:
        return _State(made_from)
    if not resume:
        what = f"holds {found.rows:,} rows of a command that was interrupted"
        cure = f"Go on with --resume. {_START_OVER}"
        raise UsageError(what, where=str(part), cure=cure)
    names = dict.fromkeys([*found.made_from, *made_from])
    changed = [name for name in names if found.made_from.get(name) != made_from.get(name)]
    if changed:
        raise changed_since(part, changed)
    if not part.is_file() or part.stat().st_size < found.size:
        raise UsageError("has lost rows since it was written", where=str(part), cure=_START_OVER)
    return found


def changed_since(part: Path, names: Sequence[str]) -> UsageError:
    """The error of an unfinished output that was made from something else."""
    what = f"cannot go on: {', '.join(names)} changed since this was begun"
    return UsageError(what, where=str(part), cure=_START_OVER)


def _state_path(target: Path) -> Path:
    return Path(f"{name_part(target)}.state")


def _read_state(target: Path) -> _State | None:
    path = _state_path(target)
    if not path.is_file():
        return None
    content = json_files.decode(files.read_regular_file(path), str(path))
    if not isinstance(content, dict) or content.pop("format", None) != _STATE_FORMAT:
        return None
    return _State(**content)


def _open_part_sink(part: "_PartFile", columns: Sequence[str], kind: str) -> RowSink:
    where, is_begun = str(part.target), part.state.rows > 0
    if kind == "parquet":
        from finetune.data.readers.parquet import ArrowSink

        return ArrowSink(cast(BinaryIO, part), columns, where, part.path if is_begun else None)
    return TextSink(cast(BinaryIO, part), columns, where, kind, is_begun=is_begun)


class _PartFile:
    """The stream OUT.part, and the record of what in it is complete."""

    def __init__(self, target: Path, state: _State) -> None:
        self.target, self.state, self.path = target, state, name_part(target)
        self._is_compressed = target.suffix == ".gz"
        self._member: gzip.GzipFile | None = None
        self._last_record = time.monotonic()
        self._file = files.open_regular_file(self.path, "r+b" if state.rows else "wb")
        self._file.truncate(state.size)
        self._file.seek(state.size)

    def write(self, content: bytes) -> int:
        """Appends bytes."""
        if not self._is_compressed:
            return self._file.write(content)
        if self._member is None:
            self._member = gzip.GzipFile("", "wb", fileobj=self._file, mtime=0)
        return self._member.write(content)

    def commit(self, state: _State) -> None:
        """Passes everything to the system, and records the state about once a second."""
        self.flush()
        self.state = state._replace(size=self._file.tell())
        if time.monotonic() - self._last_record >= _RECORD_SECONDS:
            self._record()

    def _record(self) -> None:
        """Writes the record, once the disk has what it counts."""
        os.fsync(self._file.fileno())
        self._last_record = time.monotonic()
        content = {"format": _STATE_FORMAT, **self.state._asdict()}
        files.write_atomically(_state_path(self.target), json_files.encode(content, indent=2))

    def flush(self) -> None:
        """Passes everything to the system; a .gz file gets a new member."""
        if self._member is not None:
            self._member.close()
            self._member = None
        self._file.flush()

    def finish(self, kind: str) -> None:
        """Gives the complete file its name."""
        self.flush()
        self._file.close()
        if kind == "parquet":
            from finetune.data.readers.parquet import convert_arrow_stream

            complete = files.name_partial(self.target)
            try:
                convert_arrow_stream(self.path, complete)
                complete.replace(self.target)
            finally:
                complete.unlink(missing_ok=True)
            self.path.unlink()
        else:
            self.path.replace(self.target)
        _state_path(self.target).unlink(missing_ok=True)

    def close(self, keep: bool) -> None:
        """Closes the unfinished file, or deletes it if it holds no rows."""
        self.flush()
        if self.state.rows:
            self._record()
        self._file.close()
        if not keep:
            self.path.unlink(missing_ok=True)
            _state_path(self.target).unlink(missing_ok=True)
