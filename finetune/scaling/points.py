"""Measured losses: N, D, C and the loss of every training run, from a table."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data import read_rows
from finetune.scaling.laws import Array
from task_formats import Row, UsageError

COLUMNS = {
    "N": "n params parameters nparams numparams numparameters modelsize nonembeddingparameters",
    "D": "d tokens ntokens numtokens trainingtokens traintokens datasetsize",
    "loss": "loss evalloss valloss validationloss testloss finalloss",
    "C": "c flops flop compute trainingflop trainingflops trainflops",
    "S_min": "smin minsteps minimumsteps",
}
"""Names of columns, the first found is taken; case, spaces and punctuation do not count."""
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""Of training; Kaplan et al., section 2.1."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Points:
    """Measured losses.

    Attributes:
        values: Variable (N, D, C, S_min) to its (R,) values. C in FLOPs.
        loss: (R,) losses in nats per token.
        columns: Variable to the column that it was read from.
        computed: How many values of C were computed as 6·N·D.
        places: Where each point was read: file and line.
        left_out: Where the points were read that are not among these.
    """

    values: Mapping[str, Array]
    loss: Array
    columns: Mapping[str, str]
    computed: int
    places: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def flops_factor(self) -> float:
        """The median of C/(N·D); 6 if C was computed or N or D is missing."""
        if not {"N", "D", "C"} <= self.values.keys():
            return FLOPS_PER_PARAMETER_AND_TOKEN
        return float(np.median(self.values["C"] / (self.values["N"] * self.values["D"])))

    def matrix(self, variables: tuple[str, ...]) -> Array:
        """(R, V) values of some variables."""
        return np.column_stack([self.values[name] for name in variables])

    def frontier(self, variable: str) -> NDArray[np.intp]:
        """Indices of the points with a lower loss than all points of a smaller or equal value.

        They are the ones that the other variables hold back least.
        """
        order = np.lexsort((self.loss, self.values[variable]))
        best, chosen = math.inf, []
        for index in order:
            if self.loss[index] < best:
                best = self.loss[index]
                chosen.append(int(index))
        return np.array(chosen, dtype=np.intp)


def read_points(
    path: Path, columns: Mapping[str, str] | None = None, leave_out_highest: int = 0
) -> Points:
    """Reads points from a table, or from all tables in a folder.

    Args:
        path: A CSV, TSV, JSONL or Parquet file, or a folder with such files.
        columns: Variable (N, D, loss, C, S_min) to the name of its column, where the name is not
            among the usual ones.
        leave_out_highest: Leave out this many points, those with the highest loss. Of equal losses
            the later ones in the file go.

    Raises:
        UsageError: A file has no loss, or neither N, D nor C; or a value is not a positive number;
            or no point would be left.
    """
    columns = columns or {}
    for name in columns.keys() - COLUMNS.keys():
        raise UsageError(f"there is no variable {name!r}", cure=f"Use {', '.join(COLUMNS)}.")
    rows: list[dict[str, float]] = []
    places: list[str] = []
    found: dict[str, str] = {}
    for file in _list_files(path):
        for where, row in read_rows(file):
            names = _find_columns(row, columns, str(file))
            if found and names != found:
                what = f"its columns are {_describe(names)}, those before are {_describe(found)}"
                raise UsageError(what, where=str(where), cure="Fit the files one by one.")
            found = names
            rows.append(dict(_numbers(row, names, str(where))))
            places.append(str(where))
    if not rows:
        raise UsageError("there are no rows", where=str(path))
    if leave_out_highest >= len(rows):
        what = f"leaving out {leave_out_highest} of {len(rows)} points leaves none"
        raise UsageError(what, where="--leave-out-highest", cure="Leave out fewer.")
    by_loss = sorted(range(len(rows)), key=lambda index: rows[index]["loss"])
    kept = sorted(by_loss[: len(rows) - leave_out_highest])
    left_out = tuple(places[index] for index in by_loss[len(kept) :])
    rows, places = [rows[index] for index in kept], [places[index] for index in kept]
    computed = 0
    if {"N", "D"} <= found.keys():
        for values in rows:
            if "C" not in values:
                values["C"] = FLOPS_PER_PARAMETER_AND_TOKEN * values["N"] * values["D"]
                computed += 1
    names_read = [*found, "C"] if computed and "C" not in found else list(found)
    arrays = {name: np.array([values[name] for values in rows]) for name in names_read}
    loss = arrays.pop("loss")
    return Points(arrays, loss, found, computed, tuple(places), left_out)


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        what = f"the folder has no file of {', '.join(SUFFIXES)}"
        raise UsageError(what, where=str(path), cure="Give a table of N, D and loss.")
    return files


def _find_columns(row: Row, given: Mapping[str, str], file: str) -> dict[str, str]:
    plain: dict[str, str] = {}
    for column in row:
        plain.setdefault(re.sub(r"[\W_]", "", column).lower(), column)
    found = {}
    for variable, names in COLUMNS.items():
        if variable in given:
            if given[variable] not in row:
                cure = f"The columns are {', '.join(row)}."
                raise UsageError(f"there is no column {given[variable]!r}", where=file, cure=cure)
            found[variable] = given[variable]
        elif name := next((name for name in names.split() if name in plain), None):
            found[variable] = plain[name]
    if "loss" not in found or len(found) == 1:
        missing = "no column of losses" if "loss" not in found else "no column of N, D or C"
        cure = f"Name it with --column, such as --column loss=NAME; columns: {', '.join(row)}."
        raise UsageError(missing, where=file, cure=cure)
    return found


def _numbers(row: Row, names: Mapping[str, str], where: str) -> Iterator[tuple[str, float]]:
    for variable, column in names.items():
        text = row[column]
        if variable == "C" and text in ("", None) and {"N", "D"} <= names.keys():
            continue  # 6·N·D is used.
        try:
            number = float(text)
        except (TypeError, ValueError):
            number = math.nan
        if not (number > 0 and math.isfinite(number)):
            what = f"{variable} (column {column!r}) is {text!r}, not a positive number"
            raise UsageError(what, where=where, cure="Correct the value or remove the row.")
        yield variable, number


def _describe(columns: Mapping[str, str]) -> str:
    return ", ".join(columns.values())
