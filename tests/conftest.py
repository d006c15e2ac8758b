"""Settings of all tests (no network, one thread) and their shared fixtures."""

import functools
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe

# The first process makes a folder for all temporary files but those of `tmp_path`. The workers of
# xdist and the processes of tests inherit it. It is deleted last, after multiprocessing's own.
if "GPTFT_TESTS_FOLDER" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = tempfile.mkdtemp(prefix="gptft-tests-")
    os.environ["GPTFT_TESTS_FOLDER"] = os.environ["TMPDIR"] = tempfile.tempdir
    Finalize(None, shutil.rmtree, (tempfile.tempdir, True), exitpriority=-200)
_HERE = Path(os.environ["GPTFT_TESTS_FOLDER"], os.environ.get("PYTEST_XDIST_WORKER", "main"))

# Set before torch and the libraries of the Hub are imported, and for the processes of tests.
# The user's own cache is neither read nor written.
os.environ.update(
    HF_HOME=f"{_HERE}/hub",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)
os.environ.setdefault("GPTFT_CACHE", f"{_HERE}/cache")

# No deadline: the machine may be busy. On CI the examples are the same every time.
# More examples: --hypothesis-profile=thorough
settings.register_profile("here", deadline=None, max_examples=25)
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("ci" if os.environ.get("CI") else "here")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def no_flush() -> Iterator[None]:
    """Makes fsync do nothing, which speeds up tests; only a power cut would show the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` next to the repository, with public data sets under `data`."""
    folder = ROOT.parent / "shared"
    if not (folder / "data" / "README.md").is_file():
        pytest.skip("no public data sets next to the repository (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of a real pretrained base of 135 million parameters, for slow tests."""
    from finetune.models.pretrained import find_base
    from task_formats import UsageError

    try:
        return find_base("smollm2-135m")
    except UsageError as error:
        pytest.skip(f"{error.what}. {error.cure}")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Maps a family to the folder of its tiny random base, which is made once per session."""
    # Imported here, so that tests without a model do not load torch.
    from tests.support.families import make

    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp("base") / name))


@pytest.fixture(scope="module")
def job(
    request: pytest.FixtureRequest,
    bases: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> "Recipe":
    """A small recipe over a tiny gpt2; the JOB of a test file is its kind and settings."""
    from tests.support import jobs

    kind, settings = request.module.JOB
    return jobs.recipe(kind, bases("gpt2"), tmp_path_factory.mktemp("data"), **settings)


@pytest.fixture(scope="module")
def undisturbed(job: "Recipe", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished, uninterrupted run of `job`. Tests must not modify it."""
    from tests.support import jobs

    return jobs.train(job, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported folders are checked in this process, which is faster."""
    from finetune.export import verification
    from finetune.export.scripts import check
    from tests.support.scripts import imports_from

    def run_check(folder: Path, format: str, rows: list[Any]) -> dict[str, Any]:
        with imports_from(folder):
            return check.compute_logits(str(folder), format, json.loads(json.dumps(rows)))

    monkeypatch.setattr(verification, "run_check", run_check)


# Imports make a million objects that stay, at which the garbage collector would look repeatedly.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped on a machine without an accelerator."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.accelerator.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))
