"""`gptft scale noise`."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Argument, Option

from finetune.cli.console import (
    console,
    make_table,
    print_line,
    show_status,
    silence_libraries,
)
from finetune.cli.options import Device, PythonTask, Trust
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.scaling.critical_batch import BatchAdvice, BatchFit, NoisePoint
    from finetune.training.job import TrainingJob


def noise(
    runs: list[Path] = Argument(metavar="RUN...", help="Run directories, such as runs/rte."),
    batches: int = Option(50, min=2, help="Batches to measure with, for each checkpoint."),
    batch_size: int | None = Option(
        None, min=2, metavar="N", help="Examples in a batch.", show_default="that of the run"
    ),
    logged: bool = Option(
        False, "--logged", help="Use only what the run logged with --noise-scale."
    ),
    output: Path | None = Option(
        None, "--output", "-o", metavar="OUT", help="Write everything as JSON."
    ),
    plots: Path | None = Option(
        None, metavar="DIR", help="Write figures as PNG files to this folder."
    ),
    seed: int = Option(0, min=0, help="Seed of the examples and of dropout."),
    task: PythonTask = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Measure the gradient noise scale of runs, and say what other batch sizes would cost.

    Example: gptft scale noise runs/rte --batches 100
    """
    from finetune.scaling.critical_batch import advise, check_points, fit_critical_batch
    from finetune.scaling.figures import check_matplotlib
    from finetune.scaling.noise_figures import draw_noise_figures
    from finetune.storage import files, json_files

    if plots is not None:
        check_matplotlib()
    silence_libraries()
    points: list[NoisePoint] = []
    for run in runs:
        options = (batches, batch_size, seed, task, device, trust_remote_code)
        points += _collect_points(run, logged, *options)
    check_points(points)
    unit = "block" if all(point.tokens_per_example for point in points) else "example"
    _print_points(points, unit)
    advice = advise(points)
    if advice is None:
        print_line(
            ("note: ", "yellow"),
            "the noise scale is not known: the true gradient is lost in the noise; more --batches, "
            "or a larger --batch-size, tell more",
        )
    else:
        _print_advice(advice, unit)
    fit = fit_critical_batch(points) if unit == "block" else None
    if isinstance(fit, str):
        print_line(("note: ", "yellow"), fit)
        fit = None
    if fit is not None:
        _print_fit(fit)
    if output is not None:
        content = {"unit": unit, "points": points, "advice": advice, "fit": fit}
        files.write_atomically(output, json_files.encode(content, indent=2) + b"\n")
        print_line("everything is in ", (str(output), "bold"))
    if plots is not None:
        names = draw_noise_figures(points, fit, advice, unit, plots)
        print_line(f"{', '.join(names)} are in ", (str(plots), "bold"))


def _collect_points(
    run: Path,
    logged: bool,
    batches: int,
    batch_size: int | None,
    seed: int,
    task: str | None,
    device: str | None,
    trust: bool,
) -> "list[NoisePoint]":
    """What the run logged, and what its saved weights give."""
    from finetune.checkpointing.run_folder import LOG, read_recipe
    from finetune.pretraining.plan import is_plan
    from finetune.scaling.critical_batch import read_log

    is_pretraining = is_plan(read_recipe(run))
    points = read_log(run / LOG, str(run), is_pretraining)
    if logged:
        return points
    job = _prepare(run, is_pretraining, task, device, trust)
    return points + list(_measure(job, run, is_pretraining, batches, batch_size, seed))


def _prepare(
    run: Path, is_pretraining: bool, task: str | None, device: str | None, trust: bool
) -> "TrainingJob":
    """The job of a run, before its first update."""
    from finetune.checkpointing.run_folder import RECIPE, load_run_recipe, read_recipe
    from finetune.cli.task_sources import find_python_task
    from finetune.distributed.setup import choose_precision, create_accelerator
    from finetune.pretraining.job import prepare_pretraining
    from finetune.pretraining.plan import parse_run_plan
    from finetune.training.finetuning import prepare_finetuning

    if is_pretraining:
        plan = parse_run_plan(read_recipe(run), str(run / RECIPE), trust)
        accelerator = create_accelerator(choose_precision(plan.train.precision, device), device)
        return prepare_pretraining(plan, run, accelerator)
    recipe = load_run_recipe(run, trust)
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    return prepare_finetuning(recipe, recipe.task.resolve(find_python_task(task)), accelerator)


def _measure(
    job: "TrainingJob",
    run: Path,
    is_pretraining: bool,
    batches: int,
    batch_size: int | None,
    seed: int,
) -> "Iterable[NoisePoint]":
    """A point for each checkpoint of the run, or for its model if there is none."""
    from finetune.checkpointing.run_folder import MODEL
    from finetune.scaling.critical_batch import NoisePoint
    from finetune.training.noise_measurement import (
        find_checkpoints,
        measure_batches,
        restore_weights,
    )
    from finetune.training.noise_scale import MomentAverages

    tokens = float(job.lengths.tokens.mean()) - 1 if is_pretraining else None
    with show_status(" loading") as status:
        checkpoints = find_checkpoints(run)
        for path in checkpoints or [run / MODEL]:
            update = restore_weights(job, path) if checkpoints else _load_final_model(job, run)
            averages, losses = MomentAverages(decay=1), []
            for batch in measure_batches(job, batches, batch_size, seed):
                averages.add(batch.moments)
                losses.append(batch.loss)
                done = f"{len(losses)} of {batches} batches"
                status.update(f" {run.name}, update {update:,}: {done}")
            yield NoisePoint(
                str(run),
                "checkpoint" if checkpoints else "model",
                update,
                math.fsum(losses) / batches,
                averages.moments,
                averages.noise_scale(),
                job.sampler.batch_size,
                tokens,
            )


def _load_final_model(job: "TrainingJob", run: Path) -> int:
    """Loads the model of a finished run into the job's; returns its update."""
    from finetune.checkpointing.model_folder import load_model
    from finetune.checkpointing.run_folder import MODEL, read_result
    from finetune.models.language_model import LanguageModel
    from finetune.models.pretrained import load_language_model
    from finetune.recipe.schema import BaseConfig
    from finetune.training.finetuning import FinetuningJob

    result = read_result(run)
    if isinstance(job, FinetuningJob):
        config = job.config
        if config.base.lora is not None:
            what = "there are no checkpoints, and the adapters of the model are merged"
            raise UsageError(what, where=str(run), cure="Use a run with its checkpoints.")
        model: Any = load_model(
            run / MODEL,
            job.task,
            config.train.max_tokens,
            head_bias=config.head.bias,
            trust_remote_code=config.base.trust_remote_code,
        )[0]
    else:
        trust = job.config.trust_remote_code  # type: ignore[attr-defined]
        base = BaseConfig(path=str((run / MODEL).absolute()), trust_remote_code=trust)
        model = LanguageModel(load_language_model(base)[0])
    job.model.load_state_dict(model.state_dict())
    if isinstance(job, FinetuningJob):  # A saved head reads plain states and has plain scores.
        job.model.score_scale = model.score_scale
        job.model.head.mean_state = None
    return int(result["update"])


def _print_points(points: "Sequence[NoisePoint]", unit: str) -> None:
    rows = []
    for point in points:
        scale, tokens = point.scale, ""
        cells = ["not yet known", ""]
        if scale is not None:
            end = f"to {scale.high:,.4g}" if math.isfinite(scale.high) else "or more"
            cells = [f"{scale.value:,.4g}", f"{scale.low:,.4g} {end}"]
            if point.tokens_per_example:
                tokens = f"{scale.value * point.tokens_per_example:,.3g}"
        noise, signal = point.moments
        rows.append(
            [
                Path(point.run).name,
                point.source,
                f"{point.update:,}",
                f"{point.loss:.4f}",
                f"{noise:.4g}",
                f"{signal:.4g}",
                *cells,
                *([tokens] if unit == "block" else []),
            ]
        )
    header = ["run", "from", "update", "loss", "tr Σ", "|G|²", f"noise scale, {unit}s"]
    header += ["95 % interval", *(["tokens"] if unit == "block" else [])]
    console().print(make_table(header, rows))


def _print_advice(advice: "BatchAdvice", unit: str) -> None:
    [own] = [cost for cost in advice.costs if cost.batch == advice.batch]
    rows = []
    for cost in advice.costs:
        marks = ["suggested"] if cost.batch == advice.suggested else []
        marks += ["this run"] if cost == own else []
        rows.append(
            [
                f"{cost.batch:,}",
                f"{cost.updates:.2f}",
                f"{cost.examples:.2f}",
                f"{cost.updates / own.updates:.2f}",
                f"{cost.examples / own.examples:.2f}",
                ", ".join(marks),
            ]
        )
    header = [f"batch, {unit}s", "updates / fewest", f"{unit}s / fewest"]
    table = make_table([*header, "updates / this run's", f"{unit}s / this run's", ""], rows)
    fewest = advice.fewest
    table.caption = (
        f"To the same loss, with the noise scale of update {advice.update:,} and a learning rate "
        f"tuned for each batch. Its {advice.update:,} updates of {advice.batch:,} {unit}s reach "
        f"what {fewest.updates:,.0f} updates (S_min), or {fewest.examples:,.0f} {unit}s (E_min), "
        "reach at the least."
    )
    table.caption_justify = "left"
    console().print(table)


def _print_fit(fit: "BatchFit") -> None:
    from finetune.scaling.critical_batch import KAPLAN_BATCH, KAPLAN_EXPONENT

    rows = [
        ["B*, tokens", f"{fit.batch.value:.3g}", *_ends(fit.batch), f"{KAPLAN_BATCH:.3g}"],
        ["alpha_B", f"{fit.exponent.value:.3g}", *_ends(fit.exponent), f"{KAPLAN_EXPONENT:.3g}"],
    ]
    table = make_table(["constant", "value", "95 % interval", "Kaplan et al., WebText2"], rows)
    low, high = fit.loss_range
    table.caption = (
        f"B_crit = B* / L^(1/alpha_B), fitted to {fit.points} points with losses of {low:.3g} to "
        f"{high:.3g}. B* is the batch at a loss of 1."
    )
    table.caption_justify = "left"
    console().print(table)


def _ends(interval: Any) -> list[str]:
    end = f"to {interval.high:.3g}" if math.isfinite(interval.high) else "or more"
    return [f"{interval.low:.3g} {end}"]
