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

PACKAGES = {"finetune", "task_formats"}


def run(*command: str, folder: Path, **environment: str) -> str:
    options = {"cwd": folder, "env": os.environ | environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_recipes_and_demo_and_works_when_installed(root, tmp_path):
    pytest.importorskip("hatchling", reason="hatchling builds wheels: pip install -e '.[dev]'")
    pip = (sys.executable, "-m", "pip")
    build = ("wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", ".")
    run(*pip, *build, str(root), folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == PACKAGES
    modules = [file for package in PACKAGES for file in (root / package).rglob("*.py")]
    page = root / "finetune" / "serving" / "page.html"
    templates = (root / "finetune" / "reports" / "templates").iterdir()
    expected = {file.relative_to(root).as_posix() for file in [*modules, *templates, page]}
    recipes = sorted((root / "recipes").glob("*.yaml"))
    assert expected | {f"finetune/recipes/{path.name}" for path in recipes} <= names

    install = ("install", "--no-deps", "--no-index", "-q", "--target", "installed")
    run(*pip, *install, str(wheel), folder=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    options = {"folder": tmp_path / "elsewhere", "PYTHONPATH": str(tmp_path / "installed")}
    *rows, shipped = run(sys.executable, "-c", LIST, **options).splitlines()
    assert rows == ["2604", "372", "248"]
    assert shipped.split() == [path.stem for path in recipes]
    shown = run(sys.executable, "-m", "finetune", "show", "rte", **options)
    assert "format: entailment" in shown
    assert (tmp_path / "installed" / "bin" / "gptft").is_file()
