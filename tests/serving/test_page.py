"""The page of `gptft serve` in a real browser."""

import json
import os
from pathlib import Path

import pytest

import finetune
from finetune.serving.app import create_app
from tests.serving.test_app import rows
from tests.support.browser import open_tab
from tests.support.servers import running

pytestmark = pytest.mark.slow

BARS = """[...document.querySelectorAll(".bars .word")].map((word) => [word.textContent,
word.nextSibling.nextSibling.textContent, word.classList.contains("best")])"""


def fill(tab, row: dict) -> None:
    """Types a row into the form and sends it."""
    values = [
        text for value in row.values() for text in ([value] if isinstance(value, str) else value)
    ]
    number = "document.querySelectorAll('#fields textarea').length"
    while tab.evaluate(number) < len(values):
        tab.evaluate("document.querySelector('#fields .field > button').click()")
    tab.evaluate(
        f"[...document.querySelectorAll('#fields textarea')]"
        f".forEach((one, n) => {{ one.value = {json.dumps(values)}[n]; }})"
    )
    tab.evaluate("document.getElementById('send').click()")
    tab.wait_for("!document.getElementById('send').disabled")


def screenshots(tab, name: str) -> None:
    """Pictures to look at, if GPTFT_SCREENSHOTS names a folder."""
    if folder := os.environ.get("GPTFT_SCREENSHOTS"):
        for width in (400, 800, 1400):
            tab.screenshot(Path(folder, f"{name}-{width}.png"), width=width)
        tab.screenshot(Path(folder, f"{name}-dark.png"), width=800, dark=True)


def assert_nothing_overflows(tab) -> None:
    tab.send(
        "Emulation.setDeviceMetricsOverride",
        width=400, height=800, deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("kind", ["entailment", "multiple_choice"])
def test_bars_show_the_probabilities_and_tokens_the_texts(kind, run_of):
    run = run_of(kind)
    predictor = finetune.load(run)
    columns = predictor.task.without_labels()
    row = rows(kind, 9)[-1]
    if kind == "multiple_choice":
        row = {name: row[name] for name in ("story", "question", "choices")}
    else:
        row = {"premise": "<script>document.title = 'x'</script> & so on\nIt rains.", **row}
        row["premise"], row["hypothesis"] = "<b>It</b> rains & pours.\nAll day.", "It is wet."
    [prediction] = predictor.predict([row])
    with running(create_app(finetune.load(run), title="runs/mine")) as url, open_tab() as tab:
        tab.go(url)
        tab.wait_for("!document.getElementById('row').hidden")
        assert tab.evaluate("document.title") == "runs/mine"
        fill(tab, row)
        tab.wait_for("!document.getElementById('preview').hidden")
        shown = tab.evaluate(BARS)
        texts = tab.evaluate(
            "[...document.querySelectorAll('.tokens')].map((one) => one.textContent)"
        )
        screenshots(tab, kind)
        assert_nothing_overflows(tab)
        assert not tab.messages
    assert [percent for _, percent, _ in shown] == [
        f"{100 * score:.1f} %" for score in prediction.scores
    ]
    [best] = [word for word, _, is_best in shown if is_best]
    assert best.split(":")[0] == prediction.label
    views = predictor.view_tokens(columns.example(row, "row", labelled=False))
    assert texts == ["".join(t.text for t in v.tokens).replace("\n", "⏎") for v in views]


def test_a_mistake_is_shown_at_its_field(run_of):
    with running(create_app(finetune.load(run_of("entailment")))) as url, open_tab() as tab:
        tab.go(url)
        tab.wait_for("!document.getElementById('row').hidden")
        fill(tab, {"premise": "It rains.", "hypothesis": " "})
        errors = tab.evaluate(
            "[...document.querySelectorAll('#fields .field')]"
            ".map((f) => [f.dataset.column, f.querySelector('.error').textContent])"
        )
        assert errors == [["premise", ""], ["hypothesis", "Text must not be empty"]]
        assert tab.evaluate("document.getElementById('result').hidden")
        screenshots(tab, "mistake")


def test_a_score_and_the_token_of_a_protected_server(run_of):
    run = run_of("score")
    served = create_app(finetune.load(run), token="open sesame")
    with running(served) as url, open_tab() as tab:
        tab.go(url)
        tab.wait_for("!document.getElementById('access').hidden")
        for token in ("wrong", "open sesame"):
            tab.evaluate(f"document.getElementById('token').value = {json.dumps(token)}")
            tab.evaluate("document.querySelector('#access button').click()")
            if token == "wrong":
                tab.wait_for("document.getElementById('access-error').textContent")
                screenshots(tab, "access")
        tab.wait_for("!document.getElementById('row').hidden")
        row = {"one": "It rains all day.", "other": "The rain does not stop."}
        fill(tab, row)
        tab.wait_for("!document.getElementById('result').hidden")
        score = finetune.load(run).predict([row])[0].label
        assert tab.evaluate("document.querySelector('.score').textContent") == f"{score:.3f}"
        screenshots(tab, "score")
