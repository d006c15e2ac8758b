"""`gptft version`."""

import importlib.metadata
import platform

from finetune.cli.console import print_line

_DEPENDENCIES = ("torch", "transformers", "accelerate", "datasets", "safetensors")


def version() -> None:
    """Print the versions of gptft and its dependencies.

    Example: gptft version
    """
    print_line(f"gptft {importlib.metadata.version('gptft')}")
    print_line(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in _DEPENDENCIES:
        print_line(f"{package} {importlib.metadata.version(package)}")
