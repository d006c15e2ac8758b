"""Held-out rows: stratified, the same every time, and never a text or a group on both sides."""

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune.data import held_out
from finetune.data.examples import read_examples
from finetune.data.held_out import (
    HeldOutDraw,
    assign_parts,
    connect_rows,
    draw_held_out,
    open_split,
)
from finetune.data.sources import open_rows
from finetune.recipe.schema import HELD_OUT, DataConfig, Fold
from task_formats import FORMATS, Classes, MultiLabel, Prompt, Range, Task, UsageError

STRATA = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)
SEEDS = st.integers(0, 5)
TASK = Task(
    FORMATS["classification"], {"text": "text", "label": "label"}, Classes.of(["a", "b", "c"])
)


@given(STRATA, st.floats(0.02, 0.98), SEEDS)
def test_a_fraction_of_every_label_is_held_out_to_within_a_row(strata, share, seed):
    units = np.arange(len(strata))
    parts = assign_parts(strata, units, [1 - share, share], seed)
    counts, held_out = np.bincount(strata), np.bincount(strata[parts == 1], minlength=4)
    for count, held in zip(counts, held_out, strict=False):
        assert abs(held - share * count) < 1
    assert abs((parts == 1).sum() - share * len(strata)) < 1
    assert {*parts.tolist()} <= {0, 1}
    assert (parts == assign_parts(strata, units, [1 - share, share], seed)).all()


@given(STRATA, st.integers(2, 7), SEEDS)
def test_folds_divide_all_rows_and_have_their_share_of_every_label(strata, folds, seed):
    parts = assign_parts(strata, np.arange(len(strata)), [1 / folds] * folds, seed)
    sizes = np.bincount(parts, minlength=folds)
    assert sizes.sum() == len(strata)
    assert sizes.max() - sizes.min() <= 1
    for stratum in set(strata.tolist()):
        share = (strata == stratum).sum() / folds
        assert (abs(np.bincount(parts[strata == stratum], minlength=folds) - share) < 1).all()


@given(st.data(), STRATA, st.floats(0.05, 0.6), SEEDS)
def test_rows_of_a_unit_stay_together_and_every_label_is_trained(data, strata, share, seed):
    count = len(strata)
    units = np.array(data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count)))
    parts = assign_parts(strata, units, [1 - share, share], seed, keep_all_strata_in_first=True)
    for unit in set(units.tolist()):
        assert len(set(parts[units == unit].tolist())) == 1
    singles = np.arange(count)
    parts = assign_parts(strata, singles, [1 - share, share], seed, keep_all_strata_in_first=True)
    assert set(strata[parts == 0].tolist()) == set(strata.tolist())


def test_equally_large_groups_give_the_fraction():
    groups = np.repeat(np.arange(100), 10)
    labels = np.tile([0, 1], 500)
    parts = assign_parts(labels, groups, [0.9, 0.1], 0)
    assert (parts == 1).sum() == 100
    assert labels[parts == 1].sum() == 50
    folds = assign_parts(labels, groups, [0.2] * 5, 0)
    assert np.bincount(folds).tolist() == [200] * 5


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 5)), min_size=1, max_size=30).map(
        np.array
    )
)
def test_units_are_what_texts_and_groups_connect(rows):
    _, texts = np.unique(rows[:, 0], return_inverse=True)
    groups = rows[:, 1]
    units = connect_rows(texts, groups)
    expected = list(range(len(rows)))  # By merging until nothing changes.
    for _ in rows:
        for n in range(len(rows)):
            for m in range(n):
                if texts[n] == texts[m] or groups[n] == groups[m] >= 0:
                    expected = [min(expected[n], expected[m]) if e in (expected[n], expected[m])
                                else e for e in expected]  # fmt: skip
    assert len(set(units.tolist())) == len(set(expected))
    assert len(set(zip(units.tolist(), expected, strict=True))) == len(set(expected))


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def file(tmp_path):
    """Ninety rows of three labels, sorted by label; every third text occurs twice."""
    rows = [
        {"text": f"Text {n - 1 if n % 3 == 1 else n}", "label": "abc"[n // 30], "author": n // 6}
        for n in range(90)
    ]
    return write(tmp_path / "train.csv", rows)


def read(data, name, task=TASK, **options):
    rows = open_split(data, task, name)
    examples, report = read_examples(task, rows, "train.csv", on_bad_row="skip", **options)
    return list(examples), report


def test_the_two_parts_are_all_rows_with_the_ids_of_the_file(file):
    data = DataConfig(train=file, hold_out=0.2)
    (held, _), (rest, _) = read(data, HELD_OUT), read(data, file)
    everything, _ = read_examples(TASK, open_rows(data, file), "train.csv")
    both = {example.id: example for example in [*held, *rest]}
    assert len(both) == len(held) + len(rest) == 90
    assert both == {example.id: example for example in everything}
    assert Counter(example.label for example in held) == {0: 6, 1: 6, 2: 6}
    assert not {e.fields["text"] for e in held} & {e.fields["text"] for e in rest}
    # The rows are sorted by label, of which a limit takes a stratified part.
    limited, _ = read(data, HELD_OUT, limit=3)
    assert {example.label for example in limited} == {0, 1, 2}
    assert all(example in held for example in limited)


def test_both_parts_share_one_draw_which_is_made_when_they_are_read(file, monkeypatch):
    drawn = []

    def draw(rows, data, task):
        drawn.append(draw_held_out(rows, data, task))
        return drawn[-1]

    monkeypatch.setattr(held_out, "draw_held_out", draw)
    data = DataConfig(train=file, hold_out=0.2)
    shared = HeldOutDraw(data, TASK)
    rest, held = (open_split(data, TASK, name, shared) for name in (file, HELD_OUT))
    assert rest.fingerprint() != held.fingerprint()
    assert not drawn
    assert ([*rest.indices()], [*held.indices()]) == tuple(
        np.flatnonzero(drawn[0] == part).tolist() for part in (False, True)
    )
    assert (len([*rest]), len([*held]), len(drawn)) == (72, 18, 1)


def test_a_prompt_changes_nothing(tmp_path):
    """Also if it reads a column of its own, in which rows with equal texts differ."""
    rows = [{"text": f"t{n // 2}", "author": n, "label": "abc"[n % 3]} for n in range(60)]
    data = DataConfig(train=write(tmp_path / "t.csv", rows), hold_out=0.2)
    columns = {**TASK.columns, "author": "author"}
    prompted = replace(
        TASK, columns=columns, prompt=Prompt("{author}: {text}", {name: name for name in "abc"})
    )
    one, other = (open_split(data, task, HELD_OUT) for task in (TASK, prompted))
    assert [*one.indices()] == [*other.indices()]
    assert one.fingerprint() == other.fingerprint()


def test_groups_are_never_divided(file):
    data = DataConfig(train=file, hold_out=0.2, group_by="author")
    held, _ = read(data, HELD_OUT)
    numbers = [int(example.id.rpartition("/")[2]) for example in held]
    assert Counter(number // 6 for number in numbers) == dict.fromkeys(
        {number // 6 for number in numbers}, 6
    )
    with pytest.raises(UsageError, match="no column 'writer'"):
        read(data.model_copy(update={"group_by": "writer"}), HELD_OUT)


def test_the_draw_is_the_same_in_every_process_and_depends_on_its_own_seed(file):
    data = DataConfig(train=file, hold_out=0.3)
    drawn = draw_held_out(open_rows(data, file), data, TASK)
    code = (
        "import sys, json; from tests.data.test_held_out import *;"
        f"data = DataConfig(train={file!r}, hold_out=0.3);"
        "print(json.dumps(draw_held_out(open_rows(data, data.train), data, TASK).tolist()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert json.loads(output) == drawn.tolist()
    other = data.model_copy(update={"split_seed": 7})
    assert draw_held_out(open_rows(data, file), other, TASK).tolist() != drawn.tolist()
    prints = {open_split(d, TASK, name).fingerprint() for d in (data, other)
              for name in (file, HELD_OUT)}  # fmt: skip
    assert len(prints) == 4
    assert open_split(data, TASK, file).fingerprint() in prints


def test_rows_that_cannot_be_used_stay_with_the_training_rows(tmp_path):
    labels = {4: "unknown", 7: "?"}
    rows = [{"text": f"t{n}", "label": labels.get(n, "ab"[n % 2])} for n in range(22)]
    data = DataConfig(train=write(tmp_path / "t.csv", rows), hold_out=0.25)
    task = replace(TASK, unlabelled=frozenset("?"))
    (held, held_report), (rest, report) = read(data, HELD_OUT, task), read(data, data.train, task)
    assert (len(held), held_report.rows) == (5, 5)
    assert (len(rest), report.rows, report.unlabelled, report.num_skipped) == (15, 17, 1, 1)


def test_folds_hold_out_every_row_once(file):
    parts = []
    for number in range(1, 4):
        data = DataConfig(train=file, hold_out=Fold(fold=number, folds=3))
        held, _ = read(data, HELD_OUT)
        rest, _ = read(data, file)
        assert len(held) + len(rest) == 90
        parts += [example.id for example in held]
    assert len(parts) == len(set(parts)) == 90
    many = DataConfig(train=file, hold_out=Fold(fold=1, folds=100))
    with pytest.raises(UsageError, match="100 folds of 60 rows or groups of rows"):
        read(many, HELD_OUT)


def test_a_label_that_occurs_once_is_trained(tmp_path):
    rows = [{"text": f"t{n}", "label": "a"} for n in range(20)] + [{"text": "x", "label": "b"}]
    for seed in range(5):
        path = write(tmp_path / "t.csv", rows)
        data = DataConfig(train=path, hold_out=0.5, split_seed=seed)
        assert {example.label for example in read(data, HELD_OUT)[0]} == {0}


def test_the_fingerprint_depends_on_what_is_drawn_from_only(file):
    data = DataConfig(train=file, hold_out=0.3)
    one = open_split(data, TASK, HELD_OUT).fingerprint()
    assert open_split(data, replace(TASK, metrics=("ece",)), HELD_OUT).fingerprint() == one
    changed = replace(TASK, unlabelled=frozenset("?"))
    assert open_split(data, changed, HELD_OUT).fingerprint() != one
    labels = MultiLabel(Classes.of(["a", "b", "c"]))
    tuned = labels.with_thresholds(dict.fromkeys("abc", 0.3))
    prints = {
        open_split(data, replace(TASK, labels=kind), HELD_OUT).fingerprint()
        for kind in (labels, tuned)
    }
    assert len(prints) == 1
    assert one not in prints


def test_nothing_to_hold_out_is_an_error(tmp_path):
    path = write(tmp_path / "t.csv", [{"text": f"t{n}", "label": "a"} for n in range(4)])
    with pytest.raises(UsageError, match=r"hold_out 0\.1 of 4 rows leaves none for evaluation"):
        read(DataConfig(train=path, hold_out=0.1), HELD_OUT)


def test_scores_and_several_labels_are_stratified(tmp_path):
    scores = [{"text": f"t{n}", "label": n / 100} for n in range(100)]
    data = DataConfig(train=write(tmp_path / "s.csv", scores), hold_out=0.2)
    held, _ = read(data, HELD_OUT, replace(TASK, labels=Range(0, 1)))
    assert Counter(int(10 * e.label) for e in held) == dict.fromkeys(range(10), 2)
    several = [{"text": f"t{n}", "label": "a,b" if n % 10 == 0 else "a"} for n in range(100)]
    data = DataConfig(train=write(tmp_path / "m.csv", several), hold_out=0.2)
    held, _ = read(data, HELD_OUT, replace(TASK, labels=MultiLabel(Classes.of(["a", "b"]))))
    assert Counter(e.label for e in held) == {(1.0, 0.0): 18, (1.0, 1.0): 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "a", "evaluate": "b", "hold_out": 0.1}, "hold_out and evaluate"),
        ({"hold_out": 0.1}, "no training rows to hold out from"),
        ({"path": "x", "hold_out": {"fold": 3, "folds": 2}}, "fold 3 of 2"),
        ({"path": "x", "hold_out": 1.5}, "less than 1"),
    ],
)
def test_mistakes_are_errors(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**values)


def test_the_default_evaluation_split_gives_way():
    data = DataConfig(path="x", hold_out=0.1)
    assert data.evaluate is None
    assert data.evaluation_split == HELD_OUT
    assert DataConfig.model_validate(data.model_dump()) == data
