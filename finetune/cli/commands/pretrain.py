"""`gptft pretrain`."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Argument, Context, Option

from finetune.cli.console import console, print_line, silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    RECIPE_FLAGS,
    Folder,
    NumProcesses,
    Overrides,
    Overwrite,
    Resume,
    Track,
    Trust,
    collect_overrides,
    with_recipe_flags,
)

if TYPE_CHECKING:
    from finetune.pretraining import Plan


_FLAGS = {
    "train.learning_rate": (float, "Peak learning rate."),
    "train.epochs": (float, "Number of epochs."),
    "train.updates": (int, "Number of updates, instead of epochs."),
    "train.batch_size": (int, "Batch size in blocks."),
    "train.seed": RECIPE_FLAGS["train.seed"],
    "train.precision": RECIPE_FLAGS["train.precision"],
    "train.noise_scale": RECIPE_FLAGS["train.noise_scale"],
}


@partial(with_recipe_flags, flags=_FLAGS)
def pretrain(
    context: Context,
    overrides: Overrides,
    plan: str = Argument(metavar="PLAN", help="A YAML file or a shipped plan."),
    folder: Folder = None,
    corpus: str | None = Option(None, metavar="FOLDER", help="Texts, or folders train and valid."),
    base: str | None = Option(None, "--from", metavar="BASE", help="Continue training this base."),
    trust_remote_code: Trust = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = 1,
    track: Track = None,
) -> None:
    """Pre-train a decoder on plain text.

    The output directory is a base for --base.

    Example: gptft pretrain tiny --corpus novels -o runs/tiny
    """
    from finetune.pretraining.plan import load_plan

    flags = {"base": base, "trust_remote_code": trust_remote_code or None, **overrides}
    flags |= find_corpus(corpus) if corpus else {"corpus.train": corpus}
    flags["train.trackers"] = track
    loaded = load_plan(plan, collect_overrides(flags, []))
    launch_processes(context, num_processes)
    target = folder or Path("runs", Path(plan).stem)
    pretrain_with_display(loaded, target, resume=resume, overwrite=overwrite)


def pretrain_with_display(plan: "Plan", folder: Path, **options: bool) -> None:
    """Pre-trains with a live progress display, then prints the scores and the next command."""
    silence_libraries()
    from finetune.cli.run_display import display_run, make_score_table, print_noise_scale
    from finetune.pretraining.job import events

    run = events(plan, folder, **options)
    result = display_run(run, f"Pre-training {folder.name}")
    if result is not None:
        if result.scores:
            console().print(make_score_table(result.scores))
        print_noise_scale(result, "block")
        print_line("The base is in ", (str(folder), "bold"), ". Next:")
        print_line((f"  gptft train --task rte --base {shlex.quote(str(folder))}", "cyan"))


def find_corpus(folder: str) -> dict[str, Any]:
    """Corpus values for a folder of texts, or of the two folders train and valid."""
    home = Path(folder)
    train = home / "train" if (home / "train").is_dir() else home
    evaluate = [str(home / n) for n in ("valid", "validation", "dev") if (home / n).is_dir()]
    return {"corpus.train": [str(train)], "corpus.evaluate": evaluate}
