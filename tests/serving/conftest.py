"""Finished runs of several kinds of tasks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import jobs

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="session")
def run_of(bases, tmp_path_factory) -> Callable[[str], Path]:
    """Maps a kind of task to the folder of a small finished run."""
    runs: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in runs:
            folder = tmp_path_factory.mktemp(kind)
            recipe = jobs.recipe(kind, bases("gpt2"), folder, epochs=1, learning_rate=1e-2)
            runs[kind] = jobs.train(recipe, folder / "run")
        return runs[kind]

    return get
