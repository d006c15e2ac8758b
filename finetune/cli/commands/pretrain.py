"""The verb pretrain."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.console import console, print_line, quiet_libraries
from finetune.cli.endings import end_stopped
from finetune.cli.launcher import is_child, run_processes
from finetune.cli.options import Precision, Processes, Settings, Trust
from finetune.cli.recipe_options import collect

if TYPE_CHECKING:
    from finetune.pretraining import Plan


def pretrain(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A YAML file, or a shipped plan.")],
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "-o", metavar="FOLDER", help="The run; else runs/PLAN."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Text to learn from, perhaps in train/ and valid/."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--from", metavar="BASE", help="Go on training this base.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times to go over the corpus.")] = None,
    updates: Annotated[int | None, typer.Option(help="Updates, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Blocks in one update.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws weights, dropout and the order.")] = None,
    precision: Precision = None,
    trust_remote_code: Trust = False,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run there and start anew.")
    ] = False,
    num_processes: Processes = 1,
) -> None:
    """Train a decoder on plain text, from a plan to a base that --base takes.

    Example: gptft pretrain tiny --corpus novels -o runs/tiny
    """
    from finetune.pretraining.plan_loading import load_plan

    flags = {
        "base": base,
        "trust_remote_code": trust_remote_code or None,
        "train.learning_rate": learning_rate,
        "train.epochs": epochs,
        "train.updates": updates,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "train.precision": precision,
        **(_corpus(corpus) if corpus else {"corpus.train": corpus}),
    }
    found = load_plan(plan, collect(flags, settings or []))
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    target = folder or Path("runs", Path(plan).stem)
    follow_pretraining(found, target, resume=resume, overwrite=overwrite)


def follow_pretraining(
    plan: "Plan", folder: Path, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Pre-trains before the user's eyes; a signal's stop ends with that signal's exit code."""
    quiet_libraries()
    from finetune.cli.run_display import follow, score_table
    from finetune.pretraining.train import events
    from finetune.training.events import Interrupted

    try:
        happening = events(plan, folder, resume=resume, overwrite=overwrite)
        result = follow(happening, f"Pre-training {folder.name}", console())
    except Interrupted as stop:
        end_stopped(str(stop), stop.exit_code)
    if result is not None:
        if result.scores:
            console().print(score_table(result.scores))
        print_line("The base is in ", (str(folder), "bold"), ". Next:")
        print_line((f"  gptft train --task rte --base {shlex.quote(str(folder))}", "cyan"))


def _corpus(folder: str) -> dict[str, Any]:
    """A folder of texts, or of the two folders train and valid."""
    home = Path(folder)
    held_out = next((home / n for n in ("valid", "validation", "dev") if (home / n).is_dir()), None)
    train = home / "train" if (home / "train").is_dir() else home
    return {
        "corpus.train": [str(train)],
        "corpus.evaluate": [str(held_out)] if held_out else [],
    }
