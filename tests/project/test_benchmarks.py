"""Benchmarks can be imported, and docs/performance.md has a place for each table."""

from importlib import import_module

import pytest

from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name, monkeypatch):
    if "lm_eval" in (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"):
        pytest.importorskip("lm_eval", reason="its peer is not installed")
    monkeypatch.syspath_prepend(str(ROOT))
    assert import_module(f"benchmarks.{name}").__doc__


def test_the_page_has_a_place_for_each_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in import_module("benchmarks.run").NAMES:
        assert page.count(f"<!-- begin {name} -->") == page.count(f"<!-- end {name} -->") == 1
        assert import_module(f"benchmarks.{name}").BENCHMARK.name == name
