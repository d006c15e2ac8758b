"""The house as a table: what may import what, and where outside packages come in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = {
    # The ground: pure functions and plain files.
    1: "task_formats allocator metrics schedule files json_text lock manifest network shortage "
    "signals",
    # What flows.
    2: "recipe recipe_faults recipe_files recipe_yaml typed_files batch fractions samples sampling",
    # Tools: each does one thing, for whoever needs it.
    3: "adapters attention bases calls checkpoint compilation data devices dropout evaluation "
    "fusions kernels last_block location loop losses model new_tokens optimizer origins peers "
    "rectangles rehearsal run seals sharding sight state tables tensor_file",
    # Jobs.
    4: "classifier course job ledger news prediction pretraining progress prompting provenance "
    "saved splits stops training verdict work",
    # Studies of many jobs.
    5: "comparison scaling reports",
    # The doors: a command line, and a handful of names for Python.
    6: "cli finetune __main__",
}
"""A file imports from floors below its own; on its own floor, as long as there is no circle."""

DOORS = {
    "accelerate": "calls devices evaluation loop job work course ledger peers prediction "
    "pretraining prompting sharding stops",
    "datasets": "data.hub",
    "huggingface_hub": "network data.hub",
    "matplotlib": "comparison.curve reports",
    "numpy": "batch classifier comparison data evaluation fractions job loop metrics prediction "
    "pretraining prompting samples sampling",
    "peft": "adapters",
    "pyarrow": "data.parquet",
    "pydantic": "recipe recipe_faults typed_files pretraining.plan",
    "pydantic_core": "recipe_faults",
    "rich": "cli",
    "safetensors": "tensor_file saved",
    "scipy": "metrics",
    "sklearn": "metrics classifier",
    "tokenizers": "pretraining.tokenizer",
    "torch": "adapters attention bases batch calls checkpoint devices dropout evaluation fusions "
    "job kernels last_block loop losses model new_tokens optimizer origins peers pretraining "
    "prompting provenance rectangles rehearsal run saved sharding sight state tables tensor_file "
    "training work",
    "transformers": "adapters attention bases compilation devices fusions last_block model "
    "new_tokens pretraining prompting saved",
    "typer": "cli",
    "yaml": "recipe_yaml",
}
"""An outside package enters through these files, and through no others."""

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for package in ("task_formats", "finetune") for path in (ROOT / package).rglob("*.py")
)
LEVEL = {unit: floor for floor, units in FLOORS.items() for unit in units.split()}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def unit_of(module: str) -> str:
    """The name under which a module stands in the table: `data` for finetune.data.hub."""
    parts = module.split(".")
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


def functions_of(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_below(module):
    floor = LEVEL[unit_of(module)]
    above = [name for name in ours(module) if LEVEL[unit_of(name)] > floor]
    # The handful of names that Python users see are looked up when first used.
    assert module == "finetune" or not above


def test_there_is_no_circle():
    # What is done are modules from which no import leads back to themselves.
    rest = {module: ours(module) - {"finetune"} for module in MODULES if module != "finetune"}
    while free := {module for module, wanted in rest.items() if not wanted & rest.keys()}:
        rest = {module: wanted for module, wanted in rest.items() if module not in free}
    assert not rest


@pytest.mark.parametrize("module", MODULES)
def test_outside_packages_come_in_by_their_doors(module):
    known = sys.stdlib_module_names | {"task_formats", "finetune"}
    for package in {name.split(".")[0] for name in imports_of(module)} - known:
        assert module.startswith("finetune."), f"task_formats is not the place for {package}"
        name = module.removeprefix("finetune.")
        doors = DOORS[package].split()
        assert any(name == door or name.startswith(f"{door}.") for door in doors), package


def test_a_module_is_a_noun_and_a_function_a_verb():
    public = {
        node.name
        for tree in MODULES.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert not public & {module.rpartition(".")[2] for module in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short_and_open_with_a_sentence(module):
    tree = MODULES[module]
    path = next(path for path in FILES if module_of(path) == module)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300
    assert all(node.end_lineno - node.lineno < 60 for node in functions_of(tree))
    assert (ast.get_docstring(tree) or "").partition("\n")[0].endswith((".", ":"))


def test_functions_are_short_on_the_whole():
    sizes = sorted(
        node.end_lineno - node.lineno + 1
        for tree in MODULES.values()
        for node in functions_of(tree)
    )
    assert sizes[len(sizes) // 2] < 12


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | {"task_formats"}:
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Refuse())
from task_formats import FORMATS, Classes, Specials, Task, ViewEncoder

ROW = {"a": "It rains", "b": "It is wet", "label": 1}
COLUMNS = {
    "classification": {"text": "a"},
    "entailment": {"premise": "a", "hypothesis": "b"},
    "similarity": {"first": "a", "second": "b"},
    "multiple_choice": {"context": "a", "choices": ["a", "b"]},
}

def tokenize(texts):
    return [list(text.encode()) for text in texts]

for name, format in FORMATS.items():
    task = Task(format, {**COLUMNS[name], "label": "label"}, Classes.of({0: "no", 1: "yes"}))
    encoder = ViewEncoder(format, tokenize, Specials(256, 257, 258), 64)
    encoded, = encoder.encode([task.example(ROW, "train/0")])
    print(name, len(encoded.endings), encoded.label, encoded.endings[0][-1])
"""


def test_task_formats_needs_nothing_but_python():
    assert run_python(ALONE).splitlines() == [
        "classification 1 1 258",
        "entailment 1 1 258",
        "similarity 2 1 258",
        "multiple_choice 2 1 258",
    ]


HEAVY = ("accelerate", "datasets", "numpy", "peft", "pyarrow", "sklearn", "torch", "transformers")


@pytest.mark.parametrize(
    "start",
    ["import finetune", "from finetune.cli import main; assert main(['--help']) == 0"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(start):
    code = f"import sys\n{start}\nprint(sorted({set(HEAVY)} & sys.modules.keys()))"
    assert run_python(code).splitlines()[-1] == "[]"
