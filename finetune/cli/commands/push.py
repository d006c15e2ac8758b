"""`gptft push`."""

from pathlib import Path

from typer import Argument, Option

from finetune.cli.commands.evaluate import check_run_exists
from finetune.cli.console import print_line, show_status, silence_libraries


def push(
    run: Path = Argument(metavar="RUN", help="Run directory, or what gptft export wrote."),
    to: str = Option(..., metavar="NAME", help="Repository on the Hub, such as me/rte."),
    public: bool = Option(False, "--public", help="Make a new repository public."),
) -> None:
    """Upload a model with its card to the Hugging Face Hub.

    Example: gptft push runs/rte --to me/rte

    A new repository is private unless you pass --public.
    """
    check_run_exists(run)
    silence_libraries()
    with show_status(f" uploading {run}"):
        from finetune.export.hub import push as push_folder

        url = push_folder(run, to, public=public)
    print_line("Uploaded to ", (url, "bold"), ".")
