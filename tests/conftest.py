"""What every test stands on: no network, one thread, a deterministic hypothesis, shared data."""

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe

# Before anything imports torch or the hub's libraries, and for the processes that tests start.
# The cache of whoever runs the tests is neither read nor filled.
_HUB = tempfile.TemporaryDirectory(prefix="gptft-tests-hub-", ignore_cleanup_errors=True)
os.environ.update(
    HF_HOME=_HUB.name,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

# No test may fail for being slow on a busy machine. On CI the same examples come every time.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="module")
def no_flush() -> Iterator[None]:
    """The disk is not waited for: only a power cut could tell, and the tests run much faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with public data sets under `data`."""
    folder = ROOT.parent / "shared"
    if not (folder / "data" / "README.md").is_file():
        pytest.skip("no public data sets beside the repository (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a family's name to the folder of its tiny random base, made once a session."""
    # Here and not above: tests that need no model do not wait for torch.
    from tests.support.families import make

    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp("base") / name))


@pytest.fixture(scope="module")
def job(
    request: pytest.FixtureRequest,
    bases: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> "Recipe":
    """A small job over a tiny gpt2: of the kind and with the settings that the file's JOB names."""
    from tests.support import jobs

    kind, settings = request.module.JOB
    return jobs.recipe(kind, bases("gpt2"), tmp_path_factory.mktemp("data"), **settings)


@pytest.fixture(scope="module")
def undisturbed(job: "Recipe", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of the file's job, which nothing has disturbed; to be read only."""
    from tests.support import jobs

    return jobs.train(job, tmp_path_factory.mktemp("undisturbed") / "run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped on a machine without an accelerator."""
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.accelerator.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))
