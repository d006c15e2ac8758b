"""Windows and macOS: system calls, encodings, file names; files for others; waiting threads."""

import ast
import os
import re
import subprocess
import sys

import pytest

from finetune.cli import main
from finetune.export.exporter import export_run
from tests.conftest import ROOT
from tests.project.test_imports import MODULES, imports_of
from tests.support import jobs, windows
from tests.support.disks import mode_of_files

COMMANDS = """
import warnings
from tests.support import windows
windows.imitate()
warnings.filterwarnings("error", category=EncodingWarning, module="finetune|task_formats")
from finetune.cli import main
train = "train --task demo --base tiny --limit 12 --epochs 1 --batch-size 4 --max-tokens 32 -o run"
assert main(train.split()) == 0
assert main("predict run rows.csv -o predicted.csv".split()) == 0
assert main("export run --to standalone -o exported".split()) == 0
"""
"""Commands on what looks like Windows to gptft."""


@pytest.mark.parametrize("module", MODULES)
def test_no_module_needs_what_windows_lacks(module):
    """Names that Windows lacks are only used after hasattr or getattr with the name."""
    assert not set(imports_of(module)) & windows.MODULES
    nodes = list(ast.walk(MODULES[module]))
    asked = {node.value for node in nodes if isinstance(node, ast.Constant)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            missing = windows.NAMES.get(node.value.id, frozenset())
            assert node.attr not in missing or node.attr in asked, f"line {node.lineno}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands write."""
    folder = tmp_path_factory.mktemp("portable")
    text = "premise,hypothesis\nGrüße aus Köln.,It is a greeting.\n"
    (folder / "rows.csv").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", COMMANDS],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GPTFT_CACHE": str(folder / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_training_prediction_and_export_work_without_them(folder):
    assert (folder / "run" / "result.json").is_file()
    assert "Grüße aus Köln." in (folder / "predicted.csv").read_text(encoding="utf-8")


@pytest.mark.slow
def test_file_names_are_legal_everywhere(folder):
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    source = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.splitlines()
    for names in (written, source):
        assert len({name.lower() for name in names}) == len(names)
        for part in {part for name in names for part in name.split("/")}:
            assert not re.search(r'[<>:"\\|?*\x00-\x1f]|[ .]$', part), part
            assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part), part


@pytest.mark.usefixtures("in_process")
def test_files_can_be_read_by_those_whom_the_umask_allows(bases, tmp_path, monkeypatch):
    """First by all, then by the user alone."""
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epochs=1)
    before = os.umask(0o022)
    try:
        run = jobs.train(recipe, tmp_path / "run")
        words = ["predict", run, recipe.data.evaluate, "-o", tmp_path / "predicted.csv"]
        assert main([*map(str, words), "--device", "cpu"]) == 0
        os.umask(0o077)
        export_run(run, "standalone", tmp_path / "exported")
    finally:
        os.umask(before)
    for name in ("run", "cache"):
        assert mode_of_files(tmp_path / name) == {0o644, 0o755}
    assert mode_of_files(tmp_path / "predicted.csv") == {0o644}
    assert mode_of_files(tmp_path / "exported") == {0o600, 0o700}


LOAD_OPENMP = """
import ctypes
from importlib.util import find_spec
from pathlib import Path
from finetune.cli import main
main(['version'])
bundled = [*Path(find_spec("torch").origin).parent.glob("lib/libgomp*")]
if bundled:
    ctypes.CDLL(str(bundled[0]))
else:
    import torch
"""
"""Torch's own OpenMP is loaded in a moment, torch itself in seconds."""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp shows its settings")
@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [
        ({}, "PASSIVE", "1000"),
        ({"OMP_WAIT_POLICY": "active"}, "ACTIVE", "30000000000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
    ],
)
def test_waiting_threads_spin_briefly_unless_the_user_wants_another_way(given, policy, spins):
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_OPENMP],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | given | {"OMP_DISPLAY_ENV": "verbose"},
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
