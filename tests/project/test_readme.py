"""The README's links exist, its commands are complete, and its package table is whole."""

import re

import pytest

from finetune.cli.app import COMMANDS
from finetune.recipe.loading import load_recipe
from tests.conftest import ROOT

PAGES = [
    *sorted(path.name for path in ROOT.glob("*.md")),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_commands_of_the_tour_exist():
    blocks = "".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    commands = set(re.findall(r"^gptft (\w+)", blocks, re.MULTILINE))
    assert commands <= {command.function.__name__ for command in COMMANDS}
    assert commands >= {"train", "predict", "prompt", "compare", "pretrain", "generate"}


def test_the_recipe_of_the_tour_loads(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "reviews.yaml").write_text(text)
    assert load_recipe(tmp_path / "reviews.yaml").task.build().labels.names == ("bad", "good")


def test_the_package_table_is_complete():
    packages = {f"finetune/{path.parent.name}/" for path in ROOT.glob("finetune/*/__init__.py")}
    assert packages <= set(re.findall(r"^\| \[([\w./]+)\]", README, re.MULTILINE))
