"""The page of a report: one HTML file that needs no network and no JavaScript."""

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.checkpointing.run_folder import read_recipe
from finetune.data.splits import find_rows
from finetune.evaluation.majority import describe_majority, score_majority
from finetune.evaluation.metrics import METRICS
from finetune.evaluation.statistics import ThresholdCurve
from finetune.models.token_views import list_templates
from finetune.reports import figures
from finetune.reports.analysis import (
    RunAnalysis,
    analyze_run,
    choose_draws,
    compare_runs,
    find_suspicious_labels,
    find_worst_rows,
    match_rows,
    slice_rows,
)
from finetune.reports.evaluated_run import EvaluatedRun, LabelCounts, count_labels
from finetune.reports.shown_rows import ViewTokens, choose_max_text, format_number, show_row
from task_formats import Classes, MultiLabel, Range, UsageError

MAX_RUNS = 6
"""Runs in one report: as many as the figures have colours."""
MAX_MATRIX = 12
"""Classes of the largest confusion matrix that is drawn; above it the page lists confusions."""
MAX_CLASSES = 100
"""Classes that tables list."""
MAX_SUSPICIOUS = 30
"""Suspicious labels that are listed."""


class Confusion(NamedTuple):
    """Rows of one class that got another one."""

    gold: str
    predicted: str
    rows: int


class RunSection(NamedTuple):
    """What the page shows of one run."""

    run: EvaluatedRun
    analysis: RunAnalysis
    confusions: list[Confusion]
    """The most frequent ones."""
    reliability: figures.Drawing | None
    thresholds: figures.Drawing | None
    threshold_data: dict[str, Any] | None
    histogram: figures.Drawing | None
    scatter: figures.Drawing | None
    recipe: str


def make_report(
    runs: Sequence[EvaluatedRun],
    view_tokens: ViewTokens,
    command: str,
    max_rows: int = 20,
    draws: int | None = None,
) -> str:
    """Makes the page of one run, or of several runs side by side.

    Args:
        runs: Runs evaluated on the same split.
        view_tokens: Gives the views of an example as the first run reads them.
        command: The command that makes this report.
        max_rows: Number of errors shown.
        draws: Resamples of each bootstrap [default: 1000, or 200 above 10,000 rows].

    Raises:
        UsageError: The runs cannot be compared, or a library is missing.
    """
    figures.check_matplotlib()
    if len(runs) > MAX_RUNS:
        cure = f"Compare at most {MAX_RUNS} runs at once."
        raise UsageError(f"{len(runs)} runs in one report", cure=cure)
    runs = _with_distinct_names(runs)
    first, matched = runs[0], match_rows(runs)
    if draws is None:
        draws = choose_draws(len(first.predictions.ids))
    suspicious = find_suspicious_labels(matched, first.task.labels.names)
    worst = find_worst_rows(matched, max_rows)
    listed = suspicious[:MAX_SUSPICIOUS]
    ids = {matched[0].ids[n] for n in [*worst, *(item.row for item in listed)]}
    rows = find_rows(first.recipe.data, first.task, first.split, ids)
    label_counts = _count_labels(first)
    majority = _score_majority(first, label_counts[0])
    shown = [n for n in worst if matched[0].ids[n] in rows]
    max_text = choose_max_text([rows[matched[0].ids[n]] for n in shown])
    lower_is_better = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    script = _read("threshold.js")
    template = _environment().get_template("report.html.jinja")
    page: str = template.render(
        about=first.recipe.about,
        baseline=describe_majority(first.task.labels),
        bases=list(dict.fromkeys(_describe_base(run) for run in runs)),
        command=command,
        commands=_list_commands(runs),
        comparisons=[
            compare_runs(first, run, (matched[0], other), draws)
            for run, other in zip(runs[1:], matched[1:], strict=True)
        ],
        curves=figures.draw_learning_curves(runs),
        differences=_list_differences(runs),
        draws=draws,
        errors=[
            show_row(runs, matched, n, rows[matched[0].ids[n]], view_tokens, max_text)
            for n in shown
        ],
        fields=list_templates(first.task.format),
        first=first,
        is_multi_label=isinstance(first.task.labels, MultiLabel),
        is_score=isinstance(first.task.labels, Range),
        label_counts=label_counts,
        limits={"classes": MAX_CLASSES, "matrix": MAX_MATRIX, "points": figures.MAX_POINTS},
        lower_is_better=lower_is_better | {"loss"},
        majority=majority,
        matched=matched[0],
        num_suspicious=len(suspicious),
        num_wrong=int(np.any([~part.correct for part in matched], axis=0).sum()),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=[_make_section(run, draws) for run in runs],
        slices=slice_rows(first, matched),
        style=_read("report.css"),
        suspicious=[(item, rows.get(matched[0].ids[item.row])) for item in listed],
        task=first.task,
        weak=_find_weak_runs(runs, majority),
    )
    return page


def _with_distinct_names(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Runs in folders of the same name are named by their paths."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return list(runs)
    return [replace(run, name=str(run.folder)) for run in runs]


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "p_value": _format_p_value}
    return environment


def _read(name: str) -> str:
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")


def _format_p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _describe_base(run: EvaluatedRun) -> str:
    base = run.recipe.base
    return f"{base.path} from scratch" if base.from_scratch else base.path


def _make_section(run: EvaluatedRun, draws: int) -> RunSection:
    analysis, rows = analyze_run(run, draws), run.predictions
    is_score = rows.probabilities is None
    curve, calibration = analysis.thresholds, analysis.calibration
    return RunSection(
        run,
        analysis,
        _list_confusions(run, analysis),
        figures.draw_reliability(calibration) if calibration else None,
        figures.draw_thresholds(curve) if curve else None,
        _threshold_data(curve) if curve else None,
        figures.draw_score_histogram(rows) if is_score else None,
        figures.draw_scatter(rows) if is_score else None,
        read_recipe(run.folder),
    )


def _threshold_data(curve: ThresholdCurve) -> dict[str, Any]:
    """The curve for the slider, with four digits, and None where a score is undefined."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(value, 4)

    return {name: [*map(plain, values.tolist())] for name, values in curve._asdict().items()}


def _list_confusions(run: EvaluatedRun, analysis: RunAnalysis, limit: int = 20) -> list[Confusion]:
    matrix, labels = analysis.confusions, run.task.labels
    if matrix is None or not isinstance(labels, Classes):
        return []
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [
        Confusion(labels.names[g], labels.names[p], int(wrong[g, p]))
        for g, p in pairs
        if wrong[g, p]
    ]


def _count_labels(run: EvaluatedRun) -> list[LabelCounts | str]:
    """The labels of the training and of the evaluated rows; a message where they are missing."""
    counts: list[LabelCounts | str] = []
    data = run.recipe.data
    if data.train is not None:
        try:
            counts.append(count_labels(data, run.task, data.train, "training"))
        except UsageError as error:
            counts.append(f"The training rows cannot be read: {error.headline}.")
    labels = run.predictions.gold.astype(np.float64)
    return [*counts, LabelCounts("evaluation", run.report, labels)]


def _score_majority(run: EvaluatedRun, training: LabelCounts | str) -> dict[str, float]:
    """Scores of the most frequent training label; empty without training rows."""
    if isinstance(training, str) or training.name != "training":
        return {}
    return score_majority(run.task, training.labels.tolist(), run.predictions.gold.tolist())


def _find_weak_runs(runs: Sequence[EvaluatedRun], majority: Mapping[str, float]) -> list[str]:
    """Names of the runs whose first metric is no better than that of the majority class."""
    metric = runs[0].task.metrics[0]
    if metric not in majority:
        return []
    sign = 1 if METRICS[metric].higher_is_better else -1
    return [run.name for run in runs if sign * (run.scores[metric] - majority[metric]) <= 0]


def _list_differences(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """The values of recipes that differ between the runs."""
    flat = [_flatten(run.recipe.model_dump()) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [(key, [str(values.get(key, "")) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _list_commands(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Commands that repeat the training and the evaluation."""
    commands = []
    for run in runs:
        folder = str(run.folder)
        data = [] if run.data_path is None else ["--data", run.data_path]
        limit = [] if run.limit is None else ["--limit", str(run.limit)]
        again = ["--task", f"{folder}/recipe.yaml", "-o", f"{folder}-again"]
        commands.append(shlex.join(["gptft", "train", *again]))
        words = ["gptft", "evaluate", folder, "--split", run.split, *data, *limit]
        commands.append(shlex.join(words))
    return commands
