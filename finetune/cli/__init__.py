"""The command line: `gptft` and `python -m finetune`."""

from collections.abc import Sequence

from finetune.distributed.signals import ignore_save_requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words after `gptft`; those of this process by default.

    Returns:
        The exit code: 0, 2 for an error that the user can correct, 1 for an unexpected error,
        130 after Ctrl-C and 143 after SIGTERM.
    """
    # Importing takes a while, during which a scheduler may already ask for a checkpoint.
    with ignore_save_requests():
        from finetune.cli.app import run_command

        return run_command(arguments)
