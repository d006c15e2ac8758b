"""What is said where an optional package is missing."""

import ast
import sys
import tomllib

import pytest

from finetune.optional_packages import require_package
from task_formats import UsageError
from tests.conftest import ROOT


def test_a_missing_package_is_named_with_what_needs_it_and_the_cure(monkeypatch):
    require_package("numpy", "lora", "this setting")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UsageError) as caught:
        require_package(
            "numpy", "lora", "this setting", where="base.lora", otherwise="leave it out."
        )
    assert str(caught.value) == (
        "base.lora: this setting needs numpy, which is not installed\n"
        "pip install 'gptft[lora]', or leave it out."
    )


def test_every_extra_that_is_named_exists():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {
        node.args[1].value
        for path in (ROOT / "finetune").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_package"
    }
    assert named >= {"excel", "gguf", "lora", "onnx", "plots", "quantization", "serve", "tune"}
    assert named <= metadata["project"]["optional-dependencies"].keys()
