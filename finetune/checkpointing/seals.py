"""The seal of a saved model: what was written is checked when it is read, as a run or as a base."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.storage import files
from finetune.storage.sealed_manifest import MANIFEST, check_folder, read_manifest, seal_folder
from task_formats import UsageError

_FORMAT = "gptft model, version 1"
_BEGINNING = 2**10
"""Bytes of a manifest in which its format is named."""


def seal_model(folder: Path, run: str | None = None) -> None:
    """Makes a saved model one that is checked when it is read: nothing in it may change."""
    with files.explain_os_errors(folder):
        seal_folder(folder, _FORMAT, run)


def check_model(folder: Path, run: str | None = None) -> None:
    """UsageError where a file of a sealed model has changed, or where another run saved it.

    A model without a seal is taken as it is: it is older, or somebody made it by hand.
    """
    if os.path.lexists(folder / MANIFEST):
        with _curing(folder):
            check_folder(folder, _FORMAT, run)


def check_writer(folder: Path, run: str | None) -> None:
    """UsageError where another run than `run` saved the model, or where its seal is damaged."""
    if os.path.lexists(folder / MANIFEST):
        with _curing(folder):
            read_manifest(folder, _FORMAT, run)


def check_base(folder: Path) -> None:
    """As `check_model`, for a folder that may also be anybody's, with a manifest of its own."""
    if _is_ours(folder / MANIFEST):
        check_model(folder)


def _is_ours(path: Path) -> bool:
    """Whether a manifest is one of a saved model, even if it was damaged.

    Behind a link it is a hub's copy, which that hub has checked.
    """
    if path.is_symlink() or not path.is_file():
        return False
    with files.explain_os_errors(path), files.open_regular_file(path) as file:
        return _FORMAT.encode() in (file.read(_BEGINNING) or b"")


@contextmanager
def _curing(folder: Path) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        cure = (
            "Put back what was written, or resume the run where it is not finished.\n"
            f"If you changed the model yourself, delete {folder / MANIFEST}."
        )
        raise UsageError(error.what, where=error.where, cure=cure) from error
