"""The command line: `gptft` and `python -m finetune`."""

import os
import signal
from collections.abc import Sequence

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""Threads of torch that wait for others spin for some microseconds, then sleep. By default they
spin on, which takes the cores from the threads that they wait for where other programs use the
machine too; sleeping at once halves the speed of a small model. OpenMP reads this when torch is
loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command: the words after `gptft`, by default those of this process.

    Returns the exit code: 0, 2 for an error that the user can correct, 1 for an unexpected error,
    130 after Ctrl-C and 143 after SIGTERM.
    """
    # A scheduler may ask for a checkpoint before the run listens, which would end the process.
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not os.environ.keys() & WAITING.keys():
        os.environ.update(WAITING)
    from finetune.cli.app import run_command

    return run_command(arguments)
