"""README and pages: links, commands, recipes, tables and the tests they name exist."""

import itertools
import re
import shlex
from importlib import import_module

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from finetune.cli import errors
from finetune.cli.app import COMMANDS, app
from finetune.cli.options import RECIPE_FLAGS
from finetune.evaluation.metrics import METRICS
from finetune.pretraining.plan import Plan
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe
from finetune.recipe.validation import walk_fields
from finetune.recipe.yaml_documents import parse_document
from tests.conftest import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_tests_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page])
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES[page]):
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_page_is_in_the_navigation_of_the_site():
    entries = re.findall(r"^[\w/]+$", PAGES["docs/index.md"], re.MULTILINE)
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if "/" in page}
    assert pages == {entry for entry in entries if "/" not in entry} | {"index"}


def test_the_site_describes_all_commands_and_keys(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    reference = import_module("reference")
    commands, recipes = reference.describe_commands(), reference.describe_recipes()
    for command in COMMANDS:
        name = command.function.__name__.replace("_", "-")
        assert f"### gptft {name}\n" in commands
    assert "#### gptft scale fit\n" in commands
    for key, field in [*walk_fields(Recipe), *walk_fields(Plan)]:
        assert key.rpartition(".")[2] in recipes
        if not list(reference.find_models(field.annotation)):
            assert reference.escape(" ".join((field.description or "").split())) in recipes, key


def test_the_site_leads_to_its_own_pages(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    adapt = import_module("reference").adapt_links
    page = ROOT / "docs" / "labels.md"
    assert adapt("[a](../README.md#train) [b](bases.md)", page) == (
        "[a](generated/start.md#train) [b](bases.md)"
    )
    assert adapt("[losses](../finetune/models/losses.py), `[c](x)`", page) == "`losses`, `[c](x)`"
    assert adapt("[d](docs/bases.md)", ROOT / "README.md", ROOT / "docs" / "generated") == (
        "[d](../bases.md)"
    )
    code = "[`labels`](labels.md), `x\nz` and [`y`](../README.md)"
    assert adapt(code, page) == "[`labels`](labels.md), `x\nz` and [`y`](generated/start.md)"
    with pytest.raises(ValueError, match="leads nowhere"):
        adapt("[e](missing.md)", page)


def printed_commands():
    """Every command of gptft in the pages, as words, with its page."""
    for page, text in PAGES.items():
        for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
                lexer.whitespace_split = True
                for is_end, words in itertools.groupby(
                    lexer, lambda word: set(word) <= {*"|&;<>()"}
                ):
                    found = [*words]
                    starts = [
                        n
                        for n, word in enumerate(found)
                        if re.fullmatch(r"(.*/)?gptft|finetune", word)
                    ]
                    if not is_end and starts and found[0] not in ("pip", "cd", "git"):
                        yield page, found[starts[0] + 1 :]


@pytest.mark.parametrize(("page", "words"), [*printed_commands()])
def test_a_printed_command_can_be_typed(page, words):
    """Commands and options exist, and values are of their kind."""
    group = get_command(app)
    context = group.make_context("gptft", [word for word in words if word != "..."])
    while isinstance(group, TyperGroup) and context._protected_args + context.args:
        name, group, rest = group.resolve_command(context, context._protected_args + context.args)
        context = group.make_context(name, rest, parent=context)


def test_commands_of_the_tour_exist():
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGES["README.md"], re.DOTALL))
    commands = set(re.findall(r"^gptft (\w[\w-]*)", blocks, re.MULTILINE))
    names = {command.function.__name__.replace("_", "-") for command in COMMANDS}
    assert commands <= names
    assert commands >= {"train", "predict", "prompt", "compare", "pretrain", "generate"}


def test_the_recipe_of_the_tour_loads(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGES["README.md"], re.DOTALL)
    (tmp_path / "reviews.yaml").write_text(text)
    assert load_recipe(tmp_path / "reviews.yaml").task.build().labels.names == ("bad", "good")


def test_the_page_of_labels_has_every_metric_and_recipes_that_load():
    page = PAGES["docs/labels.md"]
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    several, ordered, soft, scores, losses = (parse_document(text, "").data for text in blocks)
    for parts in ({**several, **losses}, ordered, soft, scores):
        Recipe.model_validate(parts)
    table = re.findall(r"^\| (`.*?) \|", page.partition("## Metrics")[2], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(METRICS)


def test_the_recipes_of_the_page_of_tasks_load():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGES["docs/tasks.md"], re.DOTALL)
    tasks = [Recipe.model_validate(parse_document(text, "").data).task.build() for text in blocks]
    assert [len(task.format.views) for task in tasks] == [1, 1, 1]


def test_the_package_table_is_complete():
    packages = {f"finetune/{path.parent.name}/" for path in ROOT.glob("finetune/*/__init__.py")}
    assert packages <= set(re.findall(r"^\| \[([\w./]+)\]", PAGES["README.md"], re.MULTILINE))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_can_be_imported_and_has_a_place_for_its_table(name, monkeypatch):
    if "lm_eval" in (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"):
        pytest.importorskip("lm_eval", reason="its peer is not installed")
    monkeypatch.syspath_prepend(str(ROOT))
    module = import_module(f"benchmarks.{name}")
    assert module.__doc__
    if name in import_module("benchmarks.run").NAMES:
        assert module.BENCHMARK.name == name
        for mark in (f"<!-- begin {name} -->", f"<!-- end {name} -->"):
            assert PAGES["docs/benchmarks.md"].count(mark) == 1


EQUALITY = re.compile(
    r"\b(same|equals?)\b[^.;]*\b(results?|gradients?|one\s+process)\b|"
    r"\b(results?|gradients?)\b[^.;]*\b(same|equals?)\b",
    re.IGNORECASE,
)
"""A promise that results do not change."""
SPLITTING = re.compile(r"process|layout|forward pass|tokens at a time|batched|arranged")
"""What changes how an update is split, and so which masks dropout draws."""


def promises():
    """Texts that promise equal results however an update is split, with their places."""
    for page in ("README.md", "docs/several_machines.md", "docs/pretraining.md"):
        for paragraph in re.split(r"\n\s*\n|\n(?=[|*] )", PAGES[page]):
            yield page, paragraph
    for key, field in [*walk_fields(Recipe), *walk_fields(Plan)]:
        yield key, f"{key}: {field.description}"
    for key, (_, text) in RECIPE_FLAGS.items():
        yield f"--help of {key}", text
    yield "out of memory", errors._USE_LESS_MEMORY


def test_where_equal_results_are_promised_dropout_is_named():
    """Its masks depend on processes, layout and tokens per forward pass."""
    found = [
        (p, text) for p, text in promises() if EQUALITY.search(text) and SPLITTING.search(text)
    ]
    assert {place for place, _ in found} >= {
        "README.md",
        "docs/several_machines.md",
        "train.layout",
    }
    assert not [(place, text) for place, text in found if "dropout" not in text]
