"""`gptft submit`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Option

from finetune.cli.commands.evaluate import check_run_exists, load_predictor
from finetune.cli.console import console, format_count, make_table, print_line
from finetune.cli.options import Data, Device, Trust, refuse_options
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe
    from finetune.submission.glue import FilePredictions


def submit(
    runs: list[Path] | None = Argument(None, metavar="RUN...", help="Run directories."),
    output: Path | None = Option(None, "--output", "-o", metavar="ZIP", help="The zip archive."),
    fill: bool = Option(False, "--fill", help="Fill missing files with the majority class."),
    check: Path | None = Option(None, metavar="ZIP", help="Check an archive and exit."),
    data: Data = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write a submission to GLUE, or check one.

    Example: gptft submit -o glue.zip runs/cola runs/sst2 runs/mnli --fill

    The run of MNLI also predicts the diagnostic set AX. For runs on RACE the accuracy on the
    questions of middle and high schools is printed.

    Example: gptft submit --check glue.zip
    """
    if check is not None:
        others = {"RUN": runs, "--output": output, "--fill": fill, "--data": data}
        refuse_options(others, "and --check exclude each other", "Give one.")
        _check(check)
        return
    if not runs:
        raise UsageError("no run", cure="Name run directories, or an archive with --check.")
    for run in runs:
        check_run_exists(run)
    recipes = {run: _load_recipe(run, data, trust_remote_code) for run in runs}
    from finetune.submission.race import is_race

    race = [run for run, recipe in recipes.items() if is_race(recipe)]
    glue = {run: recipe for run, recipe in recipes.items() if run not in race}
    if race and (output is None or not glue):
        refuse_options({"--output": output, "--fill": fill}, "is only for runs on GLUE", "Omit it.")
    if glue and output is None:
        raise UsageError("the archive has no name", cure="Name it: -o glue.zip.")
    for run in race:
        _summarize_race(run, recipes[run], device, trust_remote_code)
    if glue and output is not None:
        _submit_glue(glue, output, fill, device, trust_remote_code)


def _load_recipe(run: Path, data: str | None, trust: bool) -> "Recipe":
    from finetune.checkpointing.run_folder import load_run_recipe
    from finetune.recipe.loading import override_recipe, resolve_paths

    recipe = load_run_recipe(run, trust)
    if data is None:
        return recipe
    return resolve_paths(override_recipe(recipe, {"data.path": data}), Path.cwd())


def _submit_glue(
    recipes: "Mapping[Path, Recipe]", output: Path, fill: bool, device: str | None, trust: bool
) -> None:
    from finetune.cli.progress_display import show_progress
    from finetune.submission.glue import GLUE_FILES, fill_file, predict_file, write_submission

    if not output.absolute().parent.is_dir():
        what = f"there is no folder {str(output.parent)!r}"
        raise UsageError(what, where=str(output), cure="Create it, or name another file.")
    predicted_by, reasons = _plan(recipes, fill)
    done = {f.name: fill_file(f, reasons[f.name]) for f in GLUE_FILES if f.name in reasons}
    for run, recipe in recipes.items():
        files = [file for file in GLUE_FILES if predicted_by.get(file.name) == run]
        if not files:
            continue
        predictor = load_predictor(run, None, device, trust)
        with show_progress():
            for file in files:
                done[file.name] = predict_file(predictor, file, recipe.data)
    submission = [done[file.name] for file in GLUE_FILES]
    write_submission(output, submission)
    _print_submission(submission)
    print_line(f"Wrote {format_count(len(submission), 'file')} to ", (str(output), "bold"), ".")


def _plan(recipes: "Mapping[Path, Recipe]", fill: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """Finds the run of every file before anything is predicted.

    Returns:
        File name to run, and file name to the reason why it is filled.
    """
    from finetune.submission.glue import GLUE_FILES, check_test_rows, find_glue_task, map_labels

    runs: dict[str, Path] = {}
    for run, recipe in recipes.items():
        task = find_glue_task(recipe, str(run))
        if task in runs:
            raise UsageError(f"{runs[task]} and {run} are both runs of {task}", cure="Give one.")
        runs[task] = run
    missing = [file.name for file in GLUE_FILES if file.task not in runs]
    if missing and not fill:
        cure = "Give a run for each, or use --fill for the majority class."
        raise UsageError(f"no run for {', '.join(missing)}", cure=cure)
    predicted_by = {f.name: runs[f.task] for f in GLUE_FILES if f.task in runs}
    reasons = dict.fromkeys(missing, "no run")
    for file in GLUE_FILES:
        if file.name not in predicted_by:
            continue
        recipe = recipes[predicted_by[file.name]]
        map_labels(recipe.task.build(), file)
        try:
            check_test_rows(recipe.data, file)
        except UsageError as error:
            if not fill:
                raise
            del predicted_by[file.name]
            reasons[file.name] = error.headline
    return predicted_by, reasons


def _print_submission(submission: "Sequence[FilePredictions]") -> None:
    rows = ([f"{part.file.name}.tsv", f"{part.file.rows:,}", part.note] for part in submission)
    console().print(make_table(["file", "rows", ""], rows))


def _summarize_race(run: Path, recipe: "Recipe", device: str | None, trust: bool) -> None:
    from finetune.cli.progress_display import show_progress
    from finetune.submission.race import summarize_race

    predictor = load_predictor(run, None, device, trust)
    with show_progress(f"evaluating {run} on RACE"):
        scores = summarize_race(predictor, recipe.data)
    rows = ([score.level, f"{score.rows:,}", f"{score.accuracy:.4f}"] for score in scores)
    console().print(make_table(["RACE", "questions", "accuracy"], rows))


def _check(path: Path) -> None:
    """Prints what is in an archive and what is wrong with it; UsageError if anything is."""
    from finetune.submission.glue import GLUE_FILES, check_submission

    checked, problems = check_submission(path, GLUE_FILES)
    rows = [
        [
            f"{file.name}.tsv",
            f"{file.rows:,}",
            ", ".join(f"{label} {count:,}" for label, count in file.counts.items()),
        ]
        for file in checked
    ]
    console().print(make_table(["file", "rows", "predictions"], rows))
    problems += [f"{file.name}.tsv: {problem}" for file in checked for problem in file.problems]
    for problem in problems:
        print_line(("! ", "bold yellow"), problem, stderr=True)
    if problems:
        what = f"not a valid submission: {format_count(len(problems), 'problem')}"
        cure = "GLUE refuses such an archive, or scores it wrongly."
        raise UsageError(what, where=str(path), cure=cure)
    print_line((str(path), "bold"), " is a valid submission.")
