"""The command line: `gptft` and `python -m finetune`."""

import signal
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command: the words after `gptft`, by default those of this process.

    Returns the exit code: 0, 2 for an error that the user can correct, 1 for an unexpected error,
    130 after Ctrl-C and 143 after SIGTERM.
    """
    # A scheduler may ask for a checkpoint before the run listens, which would end the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from finetune.cli.app import run_command

    return run_command(arguments)
