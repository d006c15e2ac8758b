"""The page of a report in a real browser."""

import os
from pathlib import Path

import pytest

from finetune.reports.page import make_report
from tests.support.browser import Tab, open_tab
from tests.support.evaluated_runs import make_run, view_tokens

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow

KINDS = ("classification", "entailment", "score", "multiple_choice", "multi_label")
WIDTHS = (400, 800, 1400)


def show(tab: Tab, folder: Path, name: str, *runs) -> None:
    """Opens a page, and keeps pictures of it if GPTFT_SCREENSHOTS names a folder."""
    path = folder / f"{name}.html"
    path.write_text(make_report(runs, view_tokens, "gptft report run", draws=20), "utf-8")
    tab.go(path.as_uri())
    if pictures := os.environ.get("GPTFT_SCREENSHOTS"):
        for width in WIDTHS:
            tab.screenshot(Path(pictures, f"report-{name}-{width}.png"), width=width)
        tab.screenshot(Path(pictures, f"report-{name}-dark.png"), width=800, dark=True)


def test_no_page_is_wider_than_its_window(tmp_path):
    pages = {kind: [make_run(tmp_path / kind, kind, 60)] for kind in KINDS}
    names = ["a run", "a-run-whose-name-has-no-blanks-and-is-long", "c"]
    pages["three"] = [
        make_run(tmp_path / "three", "entailment", 60, name=name, seed=n)
        for n, name in enumerate(names)
    ]
    with open_tab() as tab:
        for name, runs in pages.items():
            show(tab, tmp_path, name, *runs)
            for width in WIDTHS:
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                tab.send("Emulation.setDeviceMetricsOverride", **size)
                shown = tab.evaluate("document.documentElement.scrollWidth")
                assert shown <= width, (name, width)
        assert not tab.messages


def test_the_slider_shows_the_scores_of_its_threshold(tmp_path):
    run = make_run(tmp_path, "entailment", 60)
    rows = run.predictions
    index = run.task.labels.names.index(run.task.positive_class)
    with open_tab() as tab:
        show(tab, tmp_path, "slider", run)
        for percent in (50, 0, 30, 85):
            tab.evaluate(
                "(() => { const input = document.querySelector('.slider input');"
                f"input.value = {percent}; input.dispatchEvent(new Event('input')); }})()"
            )
            shown = tab.evaluate(
                "Object.fromEntries([...document.querySelectorAll('.slider [data-value]')]"
                ".map((one) => [one.dataset.value, one.textContent]))"
            )
            predicted = rows.probabilities[:, index] >= percent / 100
            positive = rows.gold == index
            hits = int((predicted & positive).sum())
            assert shown["threshold"] == f"{percent / 100:.2f}"
            assert shown["true_positives"] == str(hits)
            assert shown["false_positives"] == str(int((predicted & ~positive).sum()))
            assert shown["accuracy"] == f"{(predicted == positive).mean():.4f}"
            assert shown["recall"] == f"{hits / positive.sum():.4f}"
            assert shown["precision"] == f"{hits / predicted.sum():.4f}"
        assert tab.evaluate("document.querySelector('.slider').checkVisibility()")
