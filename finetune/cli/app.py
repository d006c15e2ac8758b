"""The command `gptft`: its verbs, and what becomes of the errors they raise."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from finetune.cli import errors as faults
from finetune.cli.commands import compare as comparing
from finetune.cli.commands import generate as generation
from finetune.cli.commands import new as drafts
from finetune.cli.commands import predict as answers
from finetune.cli.commands import pretrain as pretraining
from finetune.cli.commands import preview as previews
from finetune.cli.commands import prompt as asking
from finetune.cli.commands import tasks as catalogue
from finetune.cli.commands import train as runs
from finetune.cli.console import print_line, settle_streams
from finetune.cli.options import Spreading
from finetune.models.speedups.allocator import keep_freed_memory

app = typer.Typer(
    name="gptft",
    help="Fine-tune pretrained decoders for language understanding, the way GPT-1 did.",
    epilog="Start here: gptft train --task demo --base tiny",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def version() -> None:
    """Print the versions of gptft and of what it stands on.

    Example: gptft version
    """
    print_line(f"gptft {importlib.metadata.version('gptft')}")
    print_line(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        print_line(f"{package} {importlib.metadata.version(package)}")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    asked: Annotated[bool, typer.Option("--version", help="Print the versions and stop.")] = False,
) -> None:
    """Fine-tune pretrained decoders for language understanding, the way GPT-1 did."""
    if asked:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


_TRAIN, _USE, _LOOK = "Train", "Use a run", "Look around"
_LANGUAGE = "The language model alone"
app.command(rich_help_panel=_TRAIN)(runs.train)
app.command(rich_help_panel=_TRAIN)(runs.resume)
app.command(rich_help_panel=_TRAIN, cls=Spreading)(comparing.compare)
app.command(rich_help_panel=_USE)(answers.evaluate)
app.command(rich_help_panel=_USE)(answers.predict)
app.command(rich_help_panel=_LANGUAGE)(pretraining.pretrain)
app.command(rich_help_panel=_LANGUAGE, cls=Spreading)(asking.ask)
app.command(rich_help_panel=_LANGUAGE)(generation.generate)
app.command(rich_help_panel=_LOOK)(catalogue.tasks)
app.command(rich_help_panel=_LOOK)(catalogue.show)
app.command(rich_help_panel=_LOOK)(previews.preview)
app.command(rich_help_panel=_LOOK)(drafts.new)
app.command(rich_help_panel=_LOOK)(catalogue.schema)
app.command(rich_help_panel=_LOOK)(version)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code, see `finetune.cli.main`."""
    settle_streams()
    keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = get_command(app).main(words, prog_name="gptft", standalone_mode=False, obj=words)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        return faults.report(error)
    return code if isinstance(code, int) else 0
