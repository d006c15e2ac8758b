"""Held-out rows: the part of the training rows that is used for evaluation."""

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.checks import normalize
from finetune.data.examples import ReadReport, build_examples
from finetune.data.rows import LocatedRow, Rows
from finetune.data.sources import open_rows
from finetune.data.token_store import class_indices
from finetune.recipe.schema import HELD_OUT, DataConfig, Fold
from task_formats import Label, MultiLabel, Range, Task, UsageError, suggest
from task_formats.templates import look_up

Array = NDArray[Any]

_SCORE_BINS = 10
"""Bins of scores with equally many rows, by which scores are stratified."""
_STREAM = 0x5B117
"""Keeps the draw independent of other draws with the same seed."""


@dataclass(frozen=True)
class HeldOutDraw:
    """The rows that `data.hold_out` takes from the training rows, drawn when they are needed."""

    data: DataConfig
    task: Task
    """Gives labels, by which rows are stratified, and texts, of which equal ones stay together."""

    @cached_property
    def rows(self) -> Rows:
        """All training rows."""
        return open_rows(self.data, str(self.data.train))

    @cached_property
    def is_held_out(self) -> NDArray[np.bool_]:
        """(N,) whether each row is held out; rows that cannot be used are training rows."""
        return draw_held_out(self.rows, self.data, self.task)


def open_split(data: DataConfig, task: Task, name: str, draw: HeldOutDraw | None = None) -> Rows:
    """Opens the rows of a split; with `data.hold_out`, the held-out or the other training rows.

    Args:
        data: Where rows come from.
        task: Decides with `data` which rows are held out.
        name: The split or file as in the recipe; HELD_OUT is the held-out part of `data.train`.
        draw: Of this data and task, if both parts are read: they share one draw.

    Raises:
        UsageError: There is no such split.
    """
    if data.hold_out is None or data.train is None or name not in (data.train, HELD_OUT):
        return open_rows(data, name)
    draw = draw or HeldOutDraw(data, task)
    return _PartOfRows(draw.rows, draw, name == HELD_OUT)


@dataclass(frozen=True)
class _PartOfRows(Rows):
    """The held-out rows of a file or data set, or the others; which they are is found when read."""

    rows: Rows
    draw: HeldOutDraw
    is_held_out: bool

    @property
    def origin(self) -> str:
        part = "held-out rows" if self.is_held_out else "training rows"
        return f"{part} of {self.rows.origin}"

    def indices(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._members).tolist())

    def read(self) -> Iterator[LocatedRow]:
        for is_member, located in zip(self._members.tolist(), self.rows.read(), strict=False):
            if is_member:
                yield located

    def describe(self) -> str:
        return "" if self.is_held_out else self.rows.describe()  # It is one file: told once.

    def fingerprint(self) -> str:
        # By what the draw depends on, so that known rows need not be read.
        task = self.draw.task.without_prompt()
        labels = task.labels
        if isinstance(labels, MultiLabel):
            labels = replace(labels, thresholds=())  # A saved model has them.
        read = (task.format, task.columns, task.values, labels, sorted(task.unlabelled))
        drawn = self.draw.data.model_dump(include={"hold_out", "group_by", "split_seed"})
        content = [self.rows.fingerprint(), repr(read), drawn, self.is_held_out]
        return hashlib.sha256(json.dumps(content).encode("utf-8", "backslashreplace")).hexdigest()

    @property
    def _members(self) -> NDArray[np.bool_]:
        """(N,) whether each row of the file or data set is in this part."""
        return self.draw.is_held_out == self.is_held_out


def draw_held_out(rows: Rows, data: DataConfig, task: Task) -> NDArray[np.bool_]:
    """Draws the rows that `data.hold_out` takes from the training rows.

    Every label has its share among them, within one row if no rows must stay together. Rows with
    equal texts, and rows with equal values in the column `data.group_by`, stay together. A label
    that occurs once, or in one group only, is not held out, except by folds. What only a prompt
    reads does not count, so that prompting and fine-tuning hold out the same rows.

    Returns:
        (N,) booleans, False for rows without a label and for rows that cannot be used.

    Raises:
        UsageError: No row is held out, none is left, or there is no column `data.group_by`.
    """
    report, found = ReadReport(), []
    texts: dict[int, int] = {}
    groups: dict[Hashable, int] = {}
    columns = []
    task = task.without_prompt()
    items = build_examples(task, rows.read(), "", on_bad_row="skip", report=report)
    for _, row, example in items:
        # Numbered by first occurrence: hashes of texts differ from process to process.
        text = texts.setdefault(hash(normalize(example)), len(texts))
        group = None
        if data.group_by is not None:
            try:
                value = look_up(row, data.group_by)
            except KeyError:
                cure = suggest(data.group_by, map(str, row))
                what = f"no column {data.group_by!r}"
                raise UsageError(what, where="data.group_by", cure=cure) from None
            group = None if value in (None, "") else groups.setdefault(str(value), len(groups))
        columns.append((text, -1 if group is None else group))
        found.append((int(example.id.rpartition("/")[2]), example.label))
    held_out = np.zeros(report.rows, bool)
    if not found:
        return held_out
    indices = np.array([index for index, _ in found])
    units = connect_rows(*np.array(columns).T)
    strata = stratify([label for _, label in found], task)
    hold_out, seed = data.hold_out, data.split_seed
    if isinstance(hold_out, Fold):
        if hold_out.folds > units.max() + 1:
            what = f"{hold_out.folds} folds of {units.max() + 1} rows or groups of rows"
            raise UsageError(what, where=rows.origin, cure="Use fewer folds.")
        parts = assign_parts(strata, units, [1 / hold_out.folds] * hold_out.folds, seed)
        held_out[indices] = parts == hold_out.fold - 1
    else:
        share = float(hold_out or 0)
        parts = assign_parts(strata, units, [1 - share, share], seed, keep_all_strata_in_first=True)
        held_out[indices] = parts == 1
    if not held_out.any() or held_out[indices].all():
        part = "evaluation" if not held_out.any() else "training"
        what = f"data.hold_out {hold_out} of {len(indices):,} rows leaves none for {part}"
        raise UsageError(what, where=rows.origin, cure="Choose another fraction.")
    return held_out


def stratify(labels: Sequence[Label] | Array, task: Task) -> Array:
    """Returns the (N,) stratum of each label: class, bin of a score, or rarest of several."""
    if isinstance(task.labels, Range):
        return bin_scores(np.array(labels, float))
    if not isinstance(task.labels, MultiLabel):
        return class_indices(np.array(labels))
    table = np.array(labels) == 1  # (N, C)
    rarity = np.where(table, table.sum(0), len(table) + 1)
    return np.where(table.any(1), rarity.argmin(1), -1)


def bin_scores(scores: Array) -> Array:
    """(N,) bin of every score, from 0 to 9; each holds a tenth of the rows."""
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return ranks * _SCORE_BINS // len(scores)


def connect_rows(texts: Array, groups: Array) -> Array:
    """Returns the unit of each row: rows that share a text or a group are in one unit.

    Args:
        texts: (N,) number of each row's texts, from 0.
        groups: (N,) number of each row's group; -1 for none.
    """
    if groups.max(initial=-1) < 0:
        return texts
    # A forest over texts and groups: each points to another one of its unit, a root to itself.
    count = int(texts.max()) + 1
    parent = list(range(count + int(groups.max()) + 1))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for text, group in zip(texts.tolist(), groups.tolist(), strict=True):
        if group >= 0:
            parent[root(text)] = root(count + group)
    _, units = np.unique([root(text) for text in texts.tolist()], return_inverse=True)
    return np.asarray(units)


def assign_parts(
    strata: Array,
    units: Array,
    shares: Sequence[float],
    seed: int,
    *,
    keep_all_strata_in_first: bool = False,
) -> Array:
    """Divides rows into P parts with given shares, each of them stratified.

    Units of several rows are assigned first, the largest ones before, each where it brings the
    counts of its strata nearest to their shares. Single rows then fill each part up: without larger
    units a part has its share of every stratum, rounded up or down.

    Args:
        strata: (N,) class of every row.
        units: (N,) unit of every row; rows of one unit stay together.
        shares: P shares, which add up to 1.
        seed: Decides which rows a part gets.
        keep_all_strata_in_first: The first part has rows of every stratum.

    Returns:
        (N,) part of every row, from 0 to P - 1.
    """
    generator = np.random.Generator(np.random.PCG64([seed, _STREAM]))
    _, strata = np.unique(strata, return_inverse=True)
    _, units = np.unique(units, return_inverse=True)
    counts = np.bincount(strata)
    targets = np.outer(shares, counts)  # (P, C)
    if keep_all_strata_in_first:
        pairs = np.unique(np.stack([strata, units]), axis=1)
        is_divisible = np.bincount(pairs[0]) > 1
        others = np.minimum(targets[1:], (counts - 1) * is_divisible)
        targets = np.vstack([counts - others.sum(0), others])
    parts = np.full(len(strata), -1)
    assigned = np.zeros_like(targets)
    sizes = np.bincount(units)
    order = generator.permutation(np.flatnonzero(sizes > 1))
    by_unit = np.argsort(units, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for unit in order[np.argsort(-sizes[order], kind="stable")].tolist():
        rows = by_unit[starts[unit] : starts[unit + 1]]
        present, number = np.unique(strata[rows], return_counts=True)
        excess = assigned[:, present] - targets[:, present]
        # How much the squared distance from the targets grows, relative to the share of the part.
        growth = ((2 * excess + number) * number).sum(1) / np.asarray(shares)
        part = int(growth.argmin())
        parts[rows] = part
        assigned[part, present] += number
    quotas = _round_targets(targets, generator.permutation(len(counts)))
    single = generator.permutation(np.flatnonzero(sizes[units] == 1))
    by_stratum = single[np.argsort(strata[single], kind="stable")]
    ends = np.cumsum(np.bincount(strata[single], minlength=len(counts)))
    for stratum, rows in enumerate(np.split(by_stratum, ends[:-1])):
        missing = np.maximum(quotas[:, stratum] - assigned[:, stratum], 0).astype(int)
        while missing.sum() > len(rows):
            missing[missing.argmax()] -= 1
        parts[rows] = np.repeat(np.arange(len(shares)), missing)
    return parts


def _round_targets(targets: Array, order: Array) -> Array:
    """Rounds (P, C) counts up or down so that columns keep their sums, and rows nearly do."""
    quotas = np.floor(targets + 1e-9)
    error = np.zeros(len(targets))  # What rounding has taken from each part so far.
    for column in order.tolist():
        error += targets[:, column] - quotas[:, column]
        extra = round(float(targets[:, column].sum() - quotas[:, column].sum()))
        chosen = np.argsort(-error, kind="stable")[:extra]
        quotas[chosen, column] += 1
        error[chosen] -= 1
    return quotas
