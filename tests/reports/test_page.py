"""The page of a report: complete, escaped, small, and of one file."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from finetune.models.token_views import PreviewToken, TokenView
from finetune.recipe.schema import TaskConfig
from finetune.reports.page import make_report
from finetune.reports.shown_rows import Span, clip, shown_views
from task_formats import FORMATS, Classes, Task, UsageError
from tests.support.evaluated_runs import make_run, view_tokens
from tests.support.jobs import rows

pytest.importorskip("matplotlib")
VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Collects the elements and the text of a page; an element that is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [values[name] or "" for _, values in self.elements if name in values]


def render(*runs, **options) -> Page:
    return Page(make_report(runs, view_tokens, "gptft report run", draws=20, **options))


@pytest.mark.parametrize(
    "kind", ["classification", "entailment", "score", "multiple_choice", "multi_label"]
)
def test_a_page_holds_everything_itself(kind, tmp_path):
    page = render(make_run(tmp_path, kind))
    assert page.attributes("src") == []
    links = [*page.attributes("href"), *page.attributes("xlink:href")]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)
    styles = " ".join(page.attributes("style"))
    assert "url(" not in styles
    assert not re.search(r"#[0-9a-f]{6}", styles), "figures use the colours of the page"
    [policy] = [v for v in page.attributes("content") if v.startswith("default-src 'none'")]
    for script in page.scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(page.scripts) == (kind in ("entailment", "multi_label"))
    for heading in ("Scores", "Task and data", "Training", "Slices", "Worst errors", "Commands"):
        assert heading in page.text


def test_the_numbers_are_there(tmp_path):
    run = make_run(tmp_path, "entailment", 60)
    page = render(run)
    for name, value in run.scores.items():
        assert f"{name} {value:.4f}".replace("-", "−") in page.text
    train = [row["label"] for row in rows("entailment", 4)]
    answer = max(["no", "yes"], key=train.count)
    share = float((run.predictions.gold == run.task.labels.parse(answer)).mean())
    assert re.search(rf"accuracy [\d.]+ [\d.]+ to [\d.]+ {share:.4f} ", page.text)
    for label in ("no", "yes"):
        gold = int((run.predictions.gold == run.task.labels.parse(label)).sum())
        assert f"{label} {sum(row['label'] == label for row in rows('entailment', 4))}" in page.text
        assert f" {gold} " in page.text
    assert "updates, 1,234 tokens, 6 seconds" in page.text
    assert "gptft report run" in page.text
    assert 'about: "run"' in page.text


def test_a_run_no_better_than_the_majority_class_is_said_to_find_its_own_mistakes(tmp_path):
    run = make_run(tmp_path, "entailment", 60)
    note = "no better than the majority class, so most of these are mistakes of the model"
    assert note not in render(run).text
    weak = replace(run, scores={**run.scores, "accuracy": 0.1})
    assert f"run is {note}." in render(weak).text


def test_several_labels_are_listed_with_their_thresholds_and_mistakes(tmp_path):
    names = ("sun", "rain", "wind", "snow")
    run = make_run(tmp_path, "multi_label", 40)
    labels = replace(run.task.labels, thresholds=(0.125, 0.25, 0.5, 0.75))
    run = replace(run, task=replace(run.task, labels=labels))
    rows, page = run.predictions, render(run, max_rows=40)
    found = precision_recall_fscore_support(rows.gold, rows.predicted, zero_division=0)
    for k, name in enumerate(names):
        scores = " ".join(f"{column[k]:.4f}" for column in found[:3])
        counts = f"{rows.gold[:, k].sum()} {rows.predicted[:, k].sum()}"
        assert f"{name} from {labels.thresholds[k]:.4f} {scores} {counts} " in page.text
    for average in ("micro", "macro", "weighted"):
        scores = precision_recall_fscore_support(
            rows.gold, rows.predicted, average=average, zero_division=0
        )
        assert f"{average} average " + " ".join(f"{value:.4f}" for value in scores[:3]) in page.text
    wrong = int((rows.gold != rows.predicted).any(axis=1).sum())
    assert f"{wrong} of {wrong} rows with wrong labels, by their loss" in page.text
    worst = max(np.flatnonzero(~rows.correct), key=lambda n: rows.losses[n])
    for sign, word in ((1, "missing: "), (-1, "too many: ")):
        listed = [
            f"{name} {rows.probabilities[worst, k]:.3f}"
            for k, name in enumerate(names)
            if rows.gold[worst, k] - rows.predicted[worst, k] == sign
        ]
        assert not listed or word + ", ".join(listed) in page.text
    both = render(run, replace(run, name="other"))
    assert f"other {int(rows.correct.sum())} 0 0 {wrong} 1.000" in both.text


def test_texts_of_users_are_escaped(tmp_path):
    attack = "<script>alert('x')</script><img src=http://a.b/c>\"'&lt;"
    examples = rows("entailment", 12)
    for row in examples:
        row["premise"] = f"{attack} {row['premise']}"
        row["label"] = {"no": "</td><b>no", "yes": "$yes$ {{ 1 + 1 }}"}[row["label"]]
    run = make_run(
        tmp_path, "entailment", examples=examples, labels=("</td><b>no", "$yes$ {{ 1 + 1 }}"),
        positive="$yes$ {{ 1 + 1 }}",
    )  # fmt: skip
    run = replace(run, recipe=run.recipe.model_copy(update={"about": attack}), name="<b>$1$")
    page = render(run, replace(run, name=attack))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert "b" not in tags
    assert page.text.count(attack) > 12
    assert "</td><b>no" in page.text
    assert "$yes$ {{ 1 + 1 }}" in page.text
    assert "<b>$1$" in page.text


def test_several_runs_are_side_by_side(tmp_path):
    runs = [make_run(tmp_path, "entailment", name=name, seed=n) for n, name in enumerate("abc")]
    for n, epochs in enumerate((3, 9.5, 3)):
        runs[n] = replace(runs[n], recipe=runs[n].recipe.with_train(epochs=epochs))
    page = render(*runs)
    for run in runs:
        assert f"{run.name} {run.scores['accuracy']:.4f}" in page.text
    assert "train.epochs 3 9.5 3" in page.text
    assert "only a right" in page.text
    assert "on the 30 rows that all runs have" in page.text
    assert "different copies" not in page.text
    assert "different copies" in render(runs[0], replace(runs[1], fingerprint="other")).text
    with pytest.raises(UsageError, match="7 runs"):
        render(*[runs[0]] * 7)
    # Runs in folders of one name have different names.
    same = render(*[replace(run, name="model") for run in runs[:2]])
    assert all(f"{run.folder} {run.scores['accuracy']:.4f}" in same.text for run in runs[:2])


def test_missing_training_rows_and_log_are_no_error(tmp_path):
    run = replace(make_run(tmp_path, "classification"), history=None, result={})
    (tmp_path / "train.jsonl").unlink()
    page = render(run)
    assert "The training rows cannot be read:" in page.text
    assert "Training" not in re.findall(r"\w+", page.text)


def test_a_perfect_run_has_no_errors(tmp_path):
    run = make_run(tmp_path, "entailment")
    perfect = np.eye(2)[run.predictions.gold]
    predictions = replace(
        run.predictions, predicted=run.predictions.gold, probabilities=perfect, losses=np.zeros(30)
    )
    scores = dict.fromkeys(run.scores, 1.0) | {"loss": 0.0}
    page = render(replace(run, predictions=predictions, scores=scores))
    assert "Every row is predicted correctly." in page.text
    assert "None found." in page.text


@pytest.mark.slow
def test_a_page_of_many_rows_classes_and_long_texts_is_below_a_megabyte(tmp_path):
    labels = tuple(f"class number {n}" for n in range(260))
    task = TaskConfig(format="classification", columns={"text": "t", "label": "l"}, labels=labels)
    many = [{"t": f"{n} " + "long text " * 5000, "l": labels[n % 260]} for n in range(300)]
    html = make_report(
        [make_run(tmp_path, task, examples=many)], view_tokens, "gptft", max_rows=200, draws=2
    )
    assert len(html.encode()) < 1e6
    assert "Most frequent confusions" in html
    long = {"premise": "дождь " * 999, "hypothesis": "снег " * 999}
    pairs = [{**long, "label": ("no", "yes")[n % 2]} for n in range(500)]
    run = make_run(tmp_path / "pairs", "entailment", examples=pairs)
    html = make_report([run], view_tokens, "gptft", max_rows=200, draws=2)
    assert 500_000 < len(html.encode()) < 1e6
    scored = make_run(tmp_path / "scores", "score", 5000)
    html = make_report([scored] * 3, view_tokens, "gptft", max_rows=200, draws=2)
    assert len(html.encode()) < 1e6


def task_of(name: str, fields: list[str]) -> Task:
    return Task(FORMATS[name], {field: field for field in fields}, Classes.of(["a", "b"]))


def tokens(*parts: tuple[str, int | None]) -> list[PreviewToken]:
    return [PreviewToken(text, index) for text, index in parts]


def test_a_mirrored_view_is_shown_once():
    task = task_of("similarity", ["first", "second", "label"])
    parts = ("one", 0), ("other", 1)
    views = [
        TokenView(tokens(("S", None), a, ("D", None), b, ("E", None)), {})
        for a, b in (parts, parts[::-1])
    ]
    [shown] = shown_views(views, task)
    assert shown == [
        Span("special", "S"), Span("field-0", "one"), Span("special", "D"),
        Span("field-1", "other"), Span("special", "E"),
    ]  # fmt: skip


def test_tokens_are_joined_and_removed_text_is_marked_where_it_stood():
    task = task_of("entailment", ["premise", "hypothesis", "label"])
    parts = ("S", None), ("the", 0), (" cat", 0), ("D", None), ("so", 1), ("E", None)
    [shown] = shown_views([TokenView(tokens(*parts), {3: (4, " sat" * 99)})], task)
    assert shown[1:4] == [
        Span("field-0", "the cat"),
        Span("removed", clip(" sat" * 99, 200), "4 tokens removed by truncation"),
        Span("special", "D"),
    ]


def test_what_further_windows_read_is_shown_as_text():
    task = task_of("entailment", ["premise", "hypothesis", "label"])
    parts = ("S", None), ("the", 0), (" cat", 0), ("D", None), ("so", 1), ("E", None)
    [shown] = shown_views([TokenView(tokens(*parts), {3: (1, " on")}, {3: (1, " sat")})], task)
    assert shown[1:3] == [
        Span("field-0", "the cat sat"),
        Span("removed", " on", "1 tokens removed by truncation"),
    ]


def test_choices_are_listed_apart_from_the_context():
    task = task_of("multiple_choice", ["context", "choices", "label"])
    parts = ("S", None), ("why", 0), ("D", None), ("so", 1), ("E", None)
    [shown] = shown_views([TokenView(tokens(*parts), {})] * 2, task)
    assert shown == [Span("special", "S"), Span("field-0", "why"), Span("special", "E")]
