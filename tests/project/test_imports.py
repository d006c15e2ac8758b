"""Which package may import which, and where third-party packages enter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = (
    ("task_formats",),
    ("optional_packages", "progress"),
    ("storage",),
    # The table of metrics: recipes look it up, and it imports scikit-learn when it is used.
    ("evaluation.metrics",),
    ("recipe",),
    ("data",),
    ("batching",),
    ("models",),
    ("distributed",),
    ("checkpointing",),
    ("evaluation",),
    ("training",),
    ("prompting", "pretraining"),
    # Comparisons and scaling studies run what the packages above them do.
    ("comparison", "export", "reports", "scaling", "serving", "submission", "tuning"),
    ("sklearn",),
    ("cli",),
    ("__main__",),
)
"""A package imports only from packages in earlier layers, and never from one in its own."""

DOORS = {
    "accelerate": "distributed evaluation training prompting pretraining checkpointing",
    "bitsandbytes": "models.quantization training.optimizer",
    "datasets": "data.hub",
    "encode": "export.scripts",  # encode.py beside predict.py in exported folders
    "fastapi": "serving",
    "filelock": "checkpointing.run_folder models.gguf_files",
    "gguf": "models.gguf_files",
    "huggingface_hub": "data checkpointing.model_card export.hub",
    "jinja2": "reports",
    "matplotlib": "comparison.curve reports scaling.figures scaling.noise_figures",
    "numpy": "data batching models evaluation training prompting pretraining scaling comparison "
    "export reports sklearn",
    "onnxruntime": "export.scripts",
    "optuna": "tuning",
    "peft": "models.lora export.scripts",
    "pyarrow": "data.readers.parquet",
    "pydantic": "recipe pretraining.plan scaling.study_plan serving",
    "pydantic_core": "recipe serving",
    "python_calamine": "data.readers.excel",
    "rich": "cli",
    "ruamel": "recipe.yaml_documents",
    "safetensors": "storage.tensors export.scripts",
    "scipy": "evaluation scaling training.noise_scale",
    "sklearn": "evaluation sklearn",
    "starlette": "serving",
    "tokenizers": "pretraining.tokenizer export.classification",
    "torch": "storage.tensors batching models distributed checkpointing evaluation training "
    "prompting pretraining export",
    "transformers": "models checkpointing distributed prompting pretraining export",
    "typer": "cli",
    "uvicorn": "serving",
}
"""Third-party packages, and the only packages of ours that import them."""

FILES = sorted(
    path for package in ("task_formats", "finetune") for path in (ROOT / package).rglob("*.py")
)
LAYER = {package: number for number, layer in enumerate(LAYERS) for package in layer}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def package_of(module: str) -> str:
    """The name under which a module stands in LAYERS: `data` for finetune.data.hub."""
    parts = module.split(".")
    if ".".join(parts[1:3]) in LAYER:
        return ".".join(parts[1:3])
    return parts[1] if parts[0] == "finetune" and len(parts) > 1 else parts[0]


def imports_of(module: str) -> Iterator[str]:
    """Full names of what a module imports, wherever in it the import stands."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def ours(module: str) -> set[str]:
    return {name for name in imports_of(module) if name in MODULES} - {module}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"finetune"}))
def test_a_package_imports_only_from_earlier_layers(module):
    package = package_of(module)
    later = {
        name
        for name in ours(module) - {"finetune"}
        if package_of(name) != package and LAYER[package_of(name)] >= LAYER[package]
    }
    assert not later


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_enter_through_their_doors(module):
    known = sys.stdlib_module_names | {"task_formats", "finetune"}
    for package in {name.split(".")[0] for name in imports_of(module)} - known:
        assert module.startswith("finetune."), f"task_formats may not import {package}"
        name = module.removeprefix("finetune.")
        doors = DOORS[package].split()
        assert any(name == door or name.startswith(f"{door}.") for door in doors), package


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


DATA = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys(["torch", "transformers", "accelerate"])  # Importing them raises.

import finetune.data, finetune.recipe
for package in (finetune.recipe, finetune.data):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

from finetune.data.splits import encode_split
from finetune.recipe.loading import load_recipe
from task_formats import SpecialTokens, ViewEncoder

def tokenize(texts):
    return [list(text.encode()) for text in texts]

recipe = load_recipe("demo")
task = recipe.task.build()
encoder = ViewEncoder(task.format, tokenize, SpecialTokens(256, 257, 258), 512)
print(len(encode_split(recipe, task, encoder, recipe.data.evaluate).examples))
"""


def test_rows_are_read_and_encoded_without_torch():
    assert run_python(DATA) == "372\n"


HEAVY = ("accelerate", "datasets", "numpy", "peft", "pyarrow", "sklearn", "torch", "transformers")


@pytest.mark.parametrize(
    "start",
    ["import finetune", "from finetune.cli import main; assert main(['--help']) == 0"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(start):
    code = f"import sys\n{start}\nprint(sorted({set(HEAVY)} & sys.modules.keys()))"
    assert run_python(code).splitlines()[-1] == "[]"
