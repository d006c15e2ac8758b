"""The command line: `gptft` and `python -m finetune`."""

from finetune.cli.application import main

__all__ = ["main"]
