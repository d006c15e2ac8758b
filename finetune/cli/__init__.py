"""The command line: `gptft` and `python -m finetune`."""

from collections.abc import Sequence

from finetune.distributed.signals import save_requests_ignored


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 2 for a mistake to cure, 1 for a fault of ours.

    Ctrl-C gives 130.
    """
    # From here on: loading the command line takes a while, in which a scheduler may ask to save.
    with save_requests_ignored():
        from finetune.cli.app import run_command

        return run_command(arguments)
