"""Train, save, load, compare: small jobs of every kind, end to end on a tiny base."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import finetune
import finetune.training.finetuning
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.evaluate import compute_logits, gather_logits
from finetune.evaluation.metrics import score_predictions
from finetune.recipe.schema import DataConfig, Recipe
from finetune.training.finetuning import events, prepare_finetuning
from finetune.training.loop import Step
from task_formats import UsageError
from tests.support import jobs

KINDS = sorted(jobs.TASKS)
DROPOUT = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}}
# Adam divides a gradient by its own size: where the true gradient is 0 (a key's bias), rounding
# alone decides the step. A large epsilon keeps comparisons between layouts about the gradient.
CALM = {"epsilon": 1e-3}


@pytest.fixture(scope="module")
def finished(bases, tmp_path_factory) -> Callable[[str], Path]:
    """From a kind to a finished run of it, made once, with dropout."""
    root = tmp_path_factory.mktemp("finished")

    def run(kind: str) -> Path:
        recipe = jobs.recipe(kind, bases("gpt2"), root / f"{kind}-data", **DROPOUT)
        finetune.train(recipe, root / kind)
        return root / kind

    return functools.cache(run)


def logits(run: Path) -> str:
    """A hash over the bits of the logits of a run's evaluation rows."""
    recipe = finetune.load(run).recipe
    job = prepare_finetuning(recipe, recipe.task.build(), create_accelerator("fp32"))
    predictor = finetune.load(run)
    many = job.evaluation_split.examples
    rounds = compute_logits(predictor.model, many, job.batch_config, job.accelerator)
    return hashlib.sha256(gather_logits(rounds, len(many), job.accelerator).tobytes()).hexdigest()


# -- the folder of a run -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_evaluates_and_predicts_what_its_result_says(kind: str, finished) -> None:
    run = finished(kind)
    predictor, expected = finetune.load(run), jobs.result(run)["scores"]
    found = predictor.evaluate()
    assert list(expected.values()) == [found]
    rows = jobs.rows(kind, 9, seed=1)
    predictions = predictor.predict(rows)
    task = jobs.TASKS[kind]
    gold = [task.build().labels.parse(row["label"]) for row in rows]
    again = score_predictions(task.build(), predictions, gold)
    assert again == {name: found[name] for name in task.metrics}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_alone_and_in_any_order_get_the_same_answer(kind: str, finished) -> None:
    predictor, rows = finetune.load(finished(kind)), jobs.rows(kind, 6, seed=2)
    together = predictor.predict(rows)
    for k in (5, 0, 3):
        (alone,) = predictor.predict([rows[k]])
        np.testing.assert_allclose(alone.scores, together[k].scores, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_one_per_class_or_choice(kind: str, finished) -> None:
    rows = jobs.rows(kind, 6, seed=3)
    for row, prediction in zip(rows, finetune.load(finished(kind)).predict(rows), strict=True):
        if kind == "score":
            assert prediction.scores == (prediction.label,)
            continue
        names = jobs.TASKS[kind].build().labels.names
        if kind == "multi_label":
            assert len(prediction.scores) == len(names)
            assert set(prediction.label) <= set(names)
            continue
        many = len(row["choices"]) if kind == "multiple_choice" else len(names)
        assert len(prediction.scores) == many
        assert sum(prediction.scores) == pytest.approx(1)
        assert prediction.label == names[int(np.argmax(prediction.scores))]


def test_the_log_has_every_update_and_evaluation(finished) -> None:
    run = finished("entailment")
    events = jobs.log(run)
    assert [event["update"] for event in events if event["event"] == "train"] == [*range(1, 7)]
    evaluated = [event for event in events if event["event"] == "evaluate"]
    assert [(event["update"], event["epoch"]) for event in evaluated] == [(3, 1.0), (6, 2.0)]
    assert [event["examples"] for event in events if event["event"] == "train"] == [8, 8, 4] * 2
    assert jobs.result(run)["tokens"] == sum(e["tokens"] for e in events if e["event"] == "train")


def test_the_saved_recipe_trains_the_same_model_again(finished, tmp_path) -> None:
    run = finished("similarity")
    again = jobs.train(finetune.load_recipe(run / "recipe.yaml"), tmp_path / "again")
    assert jobs.distance(jobs.weights(run), jobs.weights(again)) == 0
    assert jobs.log(run) == jobs.log(again)
    assert jobs.result(run) == jobs.result(again)


CHILD = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from tests.support import jobs
    from tests.training import test_training
    run, folder = map(Path, sys.argv[2:])
    jobs.train(test_training.finetune.load_recipe(run / "recipe.yaml"), folder)
    print(json.dumps([test_training.logits(run), test_training.logits(folder)]))
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_process_computes_the_same_bits(finished, tmp_path, workers) -> None:
    """Encoded and trained anew, with another hash seed and other numbers of tokenizer threads."""
    run = finished("multiple_choice")
    source = "\n".join(line.strip() for line in CHILD.splitlines())
    arguments = [str(Path(__file__).parents[2]), str(run), str(tmp_path / "again")]
    child = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env={
            **os.environ,
            "PYTHONHASHSEED": "4321",
            "RAYON_NUM_THREADS": f"{workers}",
            "TOKENIZERS_PARALLELISM": "true" if workers > 1 else "false",
            "GPTFT_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == [logits(run)] * 2
    assert jobs.log(run) == jobs.log(tmp_path / "again")


def test_a_run_of_relative_paths_can_be_read_from_anywhere(bases, tmp_path, monkeypatch) -> None:
    full = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    base = os.path.relpath(bases("gpt2"))
    recipe = Recipe(
        task=full.task,
        base=jobs.change(full, "base", path=base).base,
        data=DataConfig(train="train.jsonl"),
        train=full.train,
    )
    finetune.train(recipe, "../run")
    monkeypatch.chdir(tmp_path)
    predictor = finetune.load("run")
    assert predictor.recipe.base.path == str(bases("gpt2").resolve())
    assert (predictor.recipe.data.train, predictor.recipe.data.evaluate) == (full.data.train, None)
    assert "accuracy" in predictor.evaluate("train")


# -- the same result whatever the way to it ----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_train_the_same_weights(kind: str, bases, tmp_path) -> None:
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path / "data", **CALM)
    packed, shared, separate = (
        jobs.weights(jobs.train(jobs.change(recipe, "train", layout=layout), tmp_path / layout))
        for layout in ("packed", "shared", "separate")
    )
    assert jobs.distance(packed, separate) < 1e-5
    assert jobs.distance(shared, separate) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_in_pieces_is_the_update(kind: str, bases, tmp_path) -> None:
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path / "data", batch_size=16, **CALM)
    whole = jobs.train(recipe, tmp_path / "whole")
    pieces = jobs.train(jobs.change(recipe, "train", tokens_per_forward=60), tmp_path / "pieces")
    assert jobs.distance(jobs.weights(whole), jobs.weights(pieces)) < 1e-5
    assert jobs.numbers(whole) == pytest.approx(jobs.numbers(pieces), rel=1e-4)
    still = jobs.train(jobs.change(recipe, "train", learning_rate=1e-12), tmp_path / "still")
    assert jobs.distance(jobs.weights(whole), jobs.weights(still)) > 5e-4  # something was learned


def test_a_seed_decides_everything(bases, tmp_path) -> None:
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **DROPOUT)
    one, same = (jobs.train(recipe, tmp_path / name) for name in ("one", "same"))
    assert jobs.distance(jobs.weights(one), jobs.weights(same)) == 0
    assert jobs.log(one) == jobs.log(same)
    other = jobs.train(jobs.change(recipe, "train", seed=43), tmp_path / "other")
    assert jobs.distance(jobs.weights(one), jobs.weights(other)) > 1e-3


def test_every_row_is_trained_on_once_an_epoch(bases, tmp_path, monkeypatch) -> None:
    read: list[str] = []

    def note(examples, *rest):
        read.extend(example.id for example in examples)
        return collate(examples, *rest)

    collate = finetune.training.job.collate
    monkeypatch.setattr(finetune.training.job, "collate", note)
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", tokens_per_forward=50)
    jobs.train(recipe, tmp_path / "run")
    every = sorted(f"train.jsonl/{n}" for n in range(20))
    assert sorted(read[:20]) == sorted(read[20:]) == every
    assert read[:20] != read[20:]


def test_incomplete_batches_can_be_dropped(bases, tmp_path) -> None:
    """The original: floor(n / batch) updates an epoch."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "d", incomplete_batch="drop")
    run = jobs.train(recipe, tmp_path / "run")
    assert jobs.result(run)["updates"] == 20 // 8 * 2
    small = jobs.change(recipe, "train", batch_size=21)
    with pytest.raises(UsageError, match="are too few for an update of 21"):
        finetune.train(small, tmp_path / "none")


def test_dropout_draws_other_masks_for_another_layout_or_limit(bases, tmp_path) -> None:
    """As the documentation says; without dropout the first update has the same loss."""
    ways = ({"layout": "packed"}, {"layout": "separate"}, {"tokens_per_forward": 60})
    for noise in (0.0, 0.3):
        part = {"head_dropout": noise, "base_part": {"dropout": noise}, "epochs": 1}
        recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **part)
        losses = []
        for n, way in enumerate(ways):
            changed = jobs.change(recipe, "train", **way)
            steps = (e for e in events(changed, tmp_path / f"{noise}-{n}") if isinstance(e, Step))
            losses.append(float(next(steps).losses.total))
        differences = {abs(loss - losses[0]) > 1e-4 for loss in losses[1:]}
        assert differences == {noise > 0}


# -- what a user should know about the data ------------------------------------------------------


def test_rows_of_one_label_and_shared_rows_are_reported(bases, tmp_path) -> None:
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path, train=12, held_out=6)
    files = [Path(str(recipe.data.train)), Path(str(recipe.data.evaluate))]
    train, held_out = (map(json.loads, file.read_text().splitlines()) for file in files)
    train, held_out = [*train], [*held_out]
    held_out = [{**row, "label": 0} for row in [*train[:2], *held_out[2:]]]
    jobs.write_rows(files[1], held_out)
    job = prepare_finetuning(recipe, recipe.task.build(), create_accelerator("fp32"))
    one_label, shared = job.notices
    assert one_label.endswith("held-out.jsonl has the label 'bad'")
    assert "2 of 6 evaluation rows also occur in the training rows" in shared


def test_the_result_has_the_score_of_the_most_frequent_label(finished) -> None:
    result = json.loads((finished("classification") / "result.json").read_text())
    recipe = finetune.load(finished("classification")).recipe
    train, held_out = (
        [json.loads(line)["label"] for line in Path(str(file)).read_text().splitlines()]
        for file in (recipe.data.train, recipe.data.evaluate)
    )
    answer = max(sorted(set(train)), key=train.count)
    expected = {"accuracy": held_out.count(answer) / len(held_out)}
    assert result["majority"] == {"evaluate": expected}
