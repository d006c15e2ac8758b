"""Class weights and label smoothing: the loss of a whole update is that of PyTorch."""

import json

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

import finetune
from finetune.training.finetuning import choose_task_loss
from task_formats import UsageError
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train_in_processes
from tests.support.samples import LAYOUTS

WEIGHTS = {"bad": 3.0, "good": 0.25}
WEIGHTED = {"class_weights": WEIGHTS, "label_smoothing": 0.1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_of_an_update_is_the_weighted_mean_of_torch(layout, bases, tmp_path):
    """In forward passes of any size, with three classes of different weights."""
    settings = {**WEIGHTED, "layout": layout, "tokens_per_forward": 40, "batch_size": 20}
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **settings)
    passes, loss, logits, labels = jobs.first_update(recipe)
    assert passes > 1
    weights = torch.tensor([3.0, 1.0, 0.25])
    expected = cross_entropy(logits, labels, weights, label_smoothing=0.1)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_two_processes_train_what_one_trains(bases, tmp_path):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **ODD, **WEIGHTED)
    one = jobs.train(recipe, tmp_path / "one")
    assert_same(one, train_in_processes(2, recipe, tmp_path / "two"))


def test_balanced_weights_are_those_of_scikit_learn(bases, tmp_path):
    recipe = jobs.recipe(
        "classification", bases("gpt2"), tmp_path / "data", class_weights="balanced"
    )
    job = jobs.prepare(recipe)
    labels = job.examples.labels.astype(int)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = job.settings.task_loss.class_weights
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    only_first = job.examples.select(np.flatnonzero(labels == labels[0]))
    options = choose_task_loss(recipe.train, job.task, only_first)
    assert options.class_weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [
        ("classification", {"class_weights": {"goood": 2.0}}, "unknown label 'goood'"),
        ("multiple_choice", {"class_weights": "balanced"}, "choices have no classes to weigh"),
        ("score", {"class_weights": "balanced"}, "a score has no classes"),
        ("score", {"label_smoothing": 0.1}, "a score has no classes"),
    ],
)
def test_weights_and_smoothing_need_classes(kind, settings, what, tmp_path):
    recipe = {"task": jobs.TASKS[kind].model_dump(mode="json"), "train": settings}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(recipe))
    with pytest.raises(UsageError, match=what) as caught:
        finetune.load_recipe(path)
    assert f"train.{next(iter(settings))}" in str(caught.value)
