"""The application `gptft` and the list of its commands."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NamedTuple

import typer
from typer.main import get_command

from finetune.cli.commands.cache import cache
from finetune.cli.commands.compare import compare
from finetune.cli.commands.cross_validate import cross_validate
from finetune.cli.commands.doctor import doctor
from finetune.cli.commands.estimate import estimate
from finetune.cli.commands.evaluate import evaluate
from finetune.cli.commands.export import export
from finetune.cli.commands.generate import generate
from finetune.cli.commands.new import new
from finetune.cli.commands.predict import predict
from finetune.cli.commands.pretrain import pretrain
from finetune.cli.commands.preview import preview
from finetune.cli.commands.prompt import prompt
from finetune.cli.commands.push import push
from finetune.cli.commands.report import report
from finetune.cli.commands.resume import resume
from finetune.cli.commands.scale import scale
from finetune.cli.commands.schema import schema
from finetune.cli.commands.serve import serve
from finetune.cli.commands.show import show
from finetune.cli.commands.submit import submit
from finetune.cli.commands.tasks import tasks
from finetune.cli.commands.train import train
from finetune.cli.commands.tune import tune
from finetune.cli.commands.version import version
from finetune.cli.console import repair_standard_streams, replace_unprintable_characters
from finetune.cli.errors import report_error
from finetune.cli.options import MultiValueCommand, with_output_options


class Command(NamedTuple):
    """A command, and the panel of `gptft --help` that lists it."""

    function: Callable[..., Any]
    panel: str


COMMANDS = (
    Command(train, "Train"),
    Command(resume, "Train"),
    Command(cross_validate, "Train"),
    Command(compare, "Train"),
    Command(tune, "Train"),
    Command(estimate, "Train"),
    Command(evaluate, "Use a run"),
    Command(predict, "Use a run"),
    Command(export, "Use a run"),
    Command(push, "Use a run"),
    Command(report, "Use a run"),
    Command(submit, "Use a run"),
    Command(serve, "Use a run"),
    Command(pretrain, "Language models"),
    Command(prompt, "Language models"),
    Command(generate, "Language models"),
    Command(tasks, "Recipes"),
    Command(show, "Recipes"),
    Command(preview, "Recipes"),
    Command(new, "Recipes"),
    Command(schema, "Recipes"),
    Command(doctor, "Other"),
    Command(cache, "Other"),
    Command(version, "Other"),
)
"""Each command takes its name and its help from its function."""

app = typer.Typer(
    name="gptft",
    epilog="Start here: gptft train --task demo --base tiny",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for command in COMMANDS:
    function = with_output_options(command.function)
    app.command(rich_help_panel=command.panel, cls=MultiValueCommand)(function)
for subcommand in scale.registered_commands:
    if subcommand.callback is not None:
        subcommand.callback = with_output_options(subcommand.callback)
app.add_typer(scale, rich_help_panel="Language models")
# The former name of prompt.
app.command("ask", hidden=True, cls=MultiValueCommand)(with_output_options(prompt))


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the versions and exit.")
    ] = False,
) -> None:
    """Fine-tune pretrained decoders for language understanding, as GPT-1 did."""
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; see `finetune.cli.main`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        repair_standard_streams()
        replace_unprintable_characters()
        with _exit_when_terminated():
            code = get_command(app).main(words, prog_name="gptft", standalone_mode=False, obj=words)
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        return report_error(error)
    return code if isinstance(code, int) else 0


@contextmanager
def _exit_when_terminated() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that files which are not complete are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # A second one would end the removal.
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    # nohup ignores SIGHUP, and a program that calls gptft may have handlers of its own.
    stops = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    changed = [n for n in stops if in_main_thread and signal.getsignal(n) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
