"""A submission to GLUE: eleven files of predictions in one flat zip archive.

Every file has the header `index<TAB>prediction` and one line per test row, numbered from 0.
"""

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from finetune.data.examples import ReadReport, build_examples
from finetune.data.known_datasets import normalize_name
from finetune.data.sources import open_rows
from finetune.evaluation.predictor import Predictor
from finetune.progress import Progress
from finetune.recipe.schema import DataConfig, Recipe
from finetune.storage import files
from task_formats import Classes, Prediction, Task, UsageError

HEADER = ["index", "prediction"]
_MAX_FILE_BYTES = 2**26
"""Bytes of the largest file that is read from an archive; QQP has 4 million."""
_ENCRYPTED = 1
"""The bit of a file's flags in an archive."""
_FEW_ROWS, _MAX_SKIPPED = 10, 0.01
"""Rows without text that are accepted, or their largest share if that is more."""
_MAX_PROBLEMS = 5
"""Problems listed for each file."""
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")


class GlueFile(NamedTuple):
    """One file of a submission."""

    name: str
    """Without its ending, .tsv."""
    task: str
    """Name of the configuration of GLUE whose run predicts it."""
    split: str
    rows: int
    labels: tuple[str, ...]
    """Words that the file may contain; empty for STS-B, which has scores."""
    majority: str
    """The most frequent training label, or the mean score of STS-B. Of MNLI and QNLI, whose classes
    have almost equally many rows, entailment."""


GLUE_FILES = (
    GlueFile("CoLA", "cola", "test", 1063, _BINARY, "1"),
    GlueFile("SST-2", "sst2", "test", 1821, _BINARY, "1"),
    GlueFile("MRPC", "mrpc", "test", 1725, _BINARY, "1"),
    GlueFile("STS-B", "stsb", "test", 1379, (), "2.700"),
    GlueFile("MNLI-m", "mnli", "test_matched", 9796, _NLI, "entailment"),
    GlueFile("MNLI-mm", "mnli", "test_mismatched", 9847, _NLI, "entailment"),
    GlueFile("QNLI", "qnli", "test", 5463, _ENTAILMENT, "entailment"),
    GlueFile("QQP", "qqp", "test", 390965, _BINARY, "0"),
    GlueFile("RTE", "rte", "test", 3000, _ENTAILMENT, "entailment"),
    GlueFile("WNLI", "wnli", "test", 146, _BINARY, "0"),
    GlueFile("AX", "mnli", "ax/test", 1104, _NLI, "entailment"),
)
"""The files, with the numbers of rows of the test sets. AX is predicted by the run of MNLI."""

MIN_SCORE, MAX_SCORE = 0.0, 5.0
"""Bounds of a score of STS-B."""


class FilePredictions(NamedTuple):
    """The predictions of one file, and how they were made."""

    file: GlueFile
    predictions: list[str]
    note: str
    """Where they come from."""


def find_glue_task(recipe: Recipe, where: str) -> str:
    """Returns the configuration of GLUE that a run was trained on, such as "mnli".

    Raises:
        UsageError: The run is of another data set; `where` names it.
    """
    name = normalize_name(recipe.data.name or "")
    name = "mnli" if name in ("mnlimatched", "mnlimismatched") else name
    tasks = sorted({file.task for file in GLUE_FILES})
    if name not in tasks:
        what = f"not a run of a task of GLUE: data.name is {recipe.data.name!r}"
        raise UsageError(what, where=where, cure=f"Known: {', '.join(tasks)}.")
    return name


def map_labels(task: Task, file: GlueFile) -> dict[str, str] | None:
    """Returns class name to the word that the file uses for it; None for scores.

    A class is written as its name or as one of its raw values: RTE's entailment by its name, CoLA's
    acceptable as 1.

    Raises:
        UsageError: The task's labels are not those of the file.
    """
    if not isinstance(task.labels, Classes):
        if file.labels:
            raise UsageError(f"the run predicts scores, and {file.name} has labels")
        return None
    words = {}
    for name in task.labels.names if file.labels else ():
        raw = [key for key, value in task.labels.raw.items() if value == name]
        words[name] = next((word for word in (name, *raw) if word in file.labels), "")
    if sorted(words.values()) != sorted(file.labels) or not file.labels:
        expected = ", ".join(file.labels) or "scores"
        what = f"the run has the labels {', '.join(task.labels.names)}, {file.name} has {expected}"
        raise UsageError(what, cure="Use the labels of the shipped recipe.")
    return words


def check_test_rows(data: DataConfig, file: GlueFile) -> None:
    """Raises UsageError if the test rows are missing, or not as many as those of GLUE."""
    rows = open_rows(data, file.split)
    count = sum(1 for _ in rows.read())
    if count != file.rows:
        what = f"{count:,} test rows, and GLUE's {file.name} has {file.rows:,}"
        raise UsageError(what, where=rows.origin, cure="Use the whole test set.")


def predict_file(
    predictor: Predictor,
    file: GlueFile,
    data: DataConfig,
) -> FilePredictions:
    """Predicts the test rows of one file.

    A few rows may have no text, as in QQP. They get the majority class, since every row needs a
    line.

    Args:
        predictor: The run.
        file: One of GLUE_FILES.
        data: Where the test rows are.

    Raises:
        UsageError: The run has other labels, or many rows cannot be used.
    """
    words = map_labels(predictor.task, file)
    report = ReadReport()
    items = build_examples(
        predictor.task.without_labels(),
        open_rows(data, file.split).read(),
        file.name,
        labelled=False,
        on_bad_row="skip",
        report=report,
    )
    found: dict[int, str] = {}
    with Progress(f"predicting {file.name}", file.rows) as progress:
        for prediction in predictor.stream((item.example for item in items), progress):
            found[int(prediction.id.rpartition("/")[2])] = _write_prediction(prediction, words)
    if not found or len(report.skipped) > max(_FEW_ROWS, _MAX_SKIPPED * file.rows):
        bad = report.skipped[0]
        what = f"{len(report.skipped):,} rows cannot be used; the first: {bad.reason}"
        raise UsageError(what, where=str(bad.location), cure="Check task.columns of the run.")
    note = f"{len(found):,} rows predicted"
    if report.skipped:
        note += f", {len(report.skipped)} without text: {file.majority}"
    return FilePredictions(file, [found.get(n, file.majority) for n in range(file.rows)], note)


def _write_prediction(prediction: Prediction, words: Mapping[str, str] | None) -> str:
    if words is not None:
        return words[str(prediction.label)]
    score = float(cast(float, prediction.label))
    return f"{min(max(score, MIN_SCORE), MAX_SCORE):.3f}"


def fill_file(file: GlueFile, reason: str) -> FilePredictions:
    """Returns the majority class, or the mean score, for every row of a file."""
    note = f"{file.majority} for all rows: {reason}"
    return FilePredictions(file, [file.majority] * file.rows, note)


def write_submission(path: Path, submission: Sequence[FilePredictions]) -> None:
    """Writes the archive; the same predictions give the same bytes.

    Raises:
        UsageError: The archive cannot be written.
    """
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in submission:
            lines = ["\t".join(HEADER), *(f"{n}\t{p}" for n, p in enumerate(part.predictions))]
            # A fixed date.
            member = zipfile.ZipInfo(f"{part.file.name}.tsv", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, "\n".join([*lines, ""]))
    files.write_atomically(path, output.getvalue())


class CheckedFile(NamedTuple):
    """What a check found in one file of an archive."""

    name: str
    rows: int
    counts: dict[str, int]
    """Rows by label, the most frequent first; empty for scores."""
    problems: list[str]


def check_submission(
    path: Path, expected: Sequence[GlueFile] = GLUE_FILES
) -> tuple[list[CheckedFile], list[str]]:
    """Checks an archive: names, headers, indices, labels and numbers of rows.

    Returns:
        What is in each file, and the problems of the archive as a whole.

    Raises:
        UsageError: The file is missing or no zip archive.
    """
    if path.is_dir():
        raise UsageError("this is a folder", where=str(path), cure="Name the zip file.")
    try:
        with files.explain_os_errors(path), zipfile.ZipFile(path) as archive:
            return _check_archive(archive, expected)
    except zipfile.BadZipFile as error:
        what, cure = f"not a zip archive: {error}", "Give a file that gptft submit or zip wrote."
        raise UsageError(what, where=str(path), cure=cure) from error


def _check_archive(
    archive: zipfile.ZipFile, expected: Sequence[GlueFile]
) -> tuple[list[CheckedFile], list[str]]:
    names = archive.namelist()
    wanted = {f"{file.name}.tsv": file for file in expected}
    problems = [f"{name} is missing" for name in wanted if name not in names]
    for name in dict.fromkeys(names):
        if "/" in name:
            problems.append(f"{name}: the archive must have no folders")
        elif name not in wanted:
            problems.append(f"{name} does not belong there")
        if names.count(name) > 1:
            problems.append(f"{name} is there {names.count(name)} times")
    checked = []
    for name, file in wanted.items():
        if name not in names:
            continue
        try:
            content = _read_member(archive, name)
        except ValueError as error:
            checked.append(CheckedFile(file.name, 0, {}, [str(error)]))
        else:
            checked.append(_check_file(content, file))
    return checked, problems


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file; ValueError with the reason why it cannot be read."""
    info = archive.getinfo(name)
    if info.file_size > _MAX_FILE_BYTES:
        raise ValueError(f"{info.file_size:,} bytes are too many")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError("it is encrypted")
    try:
        return archive.read(info)
    except NotImplementedError as error:
        raise ValueError("it is compressed in another way than by deflate") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _check_file(content: bytes, file: GlueFile) -> CheckedFile:
    problems: list[str] = []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return CheckedFile(file.name, 0, {}, [f"not UTF-8: byte {error.start}"])
    header, *lines = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    if header != HEADER:
        shown = "\\t".join(header)[:60]
        problems.append(f"the header must be index\\tprediction (got {shown!r})")
    rows = [line for line in lines if line != [""]]
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for n, row in enumerate(rows):
        if row[:1] != [str(n)] or len(row) != 2:
            wrong.append(f"line {n + 2}: expected {n}, a tab and a prediction (got {row!r:.60})")
        elif problem := _check_prediction(row[1], file):
            wrong.append(f"line {n + 2}: {problem}")
        else:
            counts[row[1]] += 1
    problems += wrong[:_MAX_PROBLEMS]
    if len(wrong) > _MAX_PROBLEMS:
        problems.append(f"{len(wrong) - _MAX_PROBLEMS:,} more lines are wrong")
    if len(rows) != file.rows:
        problems.append(f"{len(rows):,} rows instead of {file.rows:,}")
    shown_counts = dict(counts.most_common()) if file.labels else {}
    return CheckedFile(file.name, len(rows), shown_counts, problems)


def _check_prediction(text: str, file: GlueFile) -> str:
    """Says what is wrong with a prediction; empty if nothing is."""
    if file.labels:
        return "" if text in file.labels else f"{text!r:.60} is not one of {', '.join(file.labels)}"
    try:
        score = float(text)
    except ValueError:
        return f"{text!r:.60} is not a number"
    bounds = f"{MIN_SCORE:g} to {MAX_SCORE:g}"
    return "" if MIN_SCORE <= score <= MAX_SCORE else f"{text} is not from {bounds}"
