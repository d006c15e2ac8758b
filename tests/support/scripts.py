"""Scripts of exported folders, run in this process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Within the block scripts import `encode` of this folder, as `python FOLDER/SCRIPT` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            yield
        finally:
            sys.modules.pop("encode", None)
