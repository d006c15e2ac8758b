"""The wheel is built without a network and works without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LIST = """
from pathlib import Path
import finetune, task_formats
from finetune.data import open_rows
from finetune.recipe.loading import load_recipe, shipped_recipes

here = Path.cwd().parent / "installed"
for module in (finetune, task_formats):
    assert Path(module.__file__).is_relative_to(here), module.__file__
demo = load_recipe("demo").data
for split in (demo.train, demo.evaluate, demo.predict):
    assert Path(split).is_relative_to(here), split
    print(sum(1 for _ in open_rows(demo, split)))
print(*(name for name in shipped_recipes() if load_recipe(name)))
"""


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds wheels: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", str(folder))
    run(sys.executable, "-m", "pip", *build, str(root), folder=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_two_packages_with_their_data(wheel, root):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "finetune",
        "task_formats",
    }
    modules = {
        path.relative_to(root).as_posix()
        for package in ("finetune", "task_formats")
        for path in (root / package).rglob("*.py")
    }
    recipes = {
        f"finetune/{path.relative_to(root).as_posix()}"
        for pattern in ("*.yaml", "demo/*.tsv")
        for path in (root / "recipes").glob(pattern)
    }
    assert modules | recipes <= names
    assert not [name for name in names if name.rpartition("/")[2].startswith("test_")]


def test_an_installed_wheel_finds_its_recipes_and_the_demo(wheel, root, tmp_path):
    install = ("install", "--no-deps", "--no-index", "-q", "--target", str(tmp_path / "installed"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", *install, str(wheel), folder=elsewhere)
    installed = {"PYTHONPATH": str(tmp_path / "installed")}
    *rows, names = run(sys.executable, "-c", LIST, folder=elsewhere, **installed).splitlines()
    assert rows == ["2604", "372", "248"]
    assert names.split() == sorted(path.stem for path in (root / "recipes").glob("*.yaml"))
    shown = run(sys.executable, "-m", "finetune", "show", "rte", folder=elsewhere, **installed)
    assert "format: entailment" in shown
    assert (tmp_path / "installed" / "bin" / "gptft").is_file()
