"""docs/pretraining.md documents every field of a plan, and its example loads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from finetune.pretraining.plan import Plan, load_plan, shipped_plans
from finetune.recipe.yaml_documents import parse_value

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \| \S.* \|$", PAGE, re.MULTILINE))


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and defaults; "required" for a field without a default."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, info.get_default() if not info.is_required() else "required"


@pytest.mark.parametrize(("name", "default"), list(fields(Plan)))
def test_the_page_gives_the_default_of_every_field(name, default):
    assert name in ROWS
    text = ROWS[name].strip("`")
    value = text if isinstance(default, str) and default else parse_value(text)
    assert (tuple(value) if isinstance(value, list) else value) == default


def test_the_page_documents_no_other_fields():
    assert ROWS.keys() == dict(fields(Plan)).keys()


def test_the_plan_on_the_page_loads(tmp_path):
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    plan = load_plan(tmp_path / "mine.yaml")
    assert plan.corpus.train == (str(tmp_path / "books" / "train"),)
    assert (plan.shape.style, plan.train.epochs, plan.train.betas) == ("gpt2", 4, (0.9, 0.999))


def test_the_readme_links_the_page_and_it_names_the_shipped_plans():
    assert "(docs/pretraining.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in PAGE for name in shipped_plans())
