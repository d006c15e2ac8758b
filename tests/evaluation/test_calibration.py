"""Temperature scaling: fitted at the end of a run, stored with its model, applied on request."""

import csv
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import finetune
from finetune.checkpointing.model_folder import CALIBRATION
from finetune.cli import main
from finetune.evaluation.calibration import calibrate_logits
from task_formats import Encoded, UsageError
from tests.support import jobs


def encode(labels):
    return [Encoded(f"x/{n}", [1], [[2]], label) for n, label in enumerate(labels)]


def test_the_temperature_is_that_of_lbfgs():
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (400, 4)).astype(np.float32)
    logits[::5, 3] = -np.inf  # Rows with fewer choices.
    truth = torch.distributions.Categorical(logits=torch.from_numpy(logits) / 2.5)
    torch.manual_seed(0)
    gold = truth.sample()
    finite = torch.from_numpy(logits).nan_to_num(neginf=-1e4)  # A gradient of 0 * inf is NaN.
    inverse = torch.ones((), requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = cross_entropy(finite * inverse, gold)
        value.backward()
        return value.detach()

    optimizer.step(loss)
    found = calibrate_logits(logits, encode([*gold.tolist()]))
    assert found.temperature == pytest.approx(1 / float(inverse.detach()), rel=1e-4)
    assert 2 < found.temperature < 3
    assert found.corrected_error < found.error / 2


def test_rows_without_a_label_do_not_count():
    logits = np.array([[2.0, 0], [0, 1], [3, 0]], np.float32)
    some, all_known = calibrate_logits(logits, encode([0, 0, None])), encode([0, 0])
    assert some == calibrate_logits(logits[:2], all_known)
    assert calibrate_logits(logits, encode([None] * 3)) is None
    assert calibrate_logits(logits * np.nan, encode([0, 1, 0])) is None


@pytest.fixture(scope="module", params=["classification", "multiple_choice"])
def run(request, bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    recipe = jobs.recipe(request.param, bases("gpt2"), folder / "data", train=16, epochs=1)
    return jobs.train(recipe, folder / "run")


def test_a_run_stores_its_temperature_and_predicts_with_it_on_request(run):
    stored = json.loads((run / "model" / CALIBRATION).read_text())
    plain, calibrated = finetune.load(run), finetune.load(run, calibrated=True)
    evaluation = plain.evaluate_split()
    found = calibrate_logits(evaluation.result.logits, evaluation.split.examples)
    assert stored["temperature"] == pytest.approx(found.temperature, rel=1e-3)
    assert stored["rows"] == 9
    kind = "multiple_choice" if plain.task.format.is_multiple_choice else "classification"
    rows = jobs.rows(kind, 5, seed=3)
    for one, other in zip(plain.predict(rows), calibrated.predict(rows), strict=True):
        assert other.label == one.label
        powers = np.array(one.scores) ** (1 / stored["temperature"])
        assert other.scores == pytest.approx(powers / powers.sum(), rel=1e-4)
    # The temperature minimizes the loss on the evaluation split.
    assert calibrated.evaluate()["loss"] <= plain.evaluate()["loss"] + 1e-6


def test_predict_and_report_use_it(run, tmp_path):
    recipe = finetune.load(run).recipe
    outputs = []
    for options in ([], ["--calibrated"]):
        output = tmp_path / f"out{len(options)}.csv"
        command = ["predict", str(run), recipe.data.evaluate, "-o", str(output), *options]
        assert main(command) == 0
        with open(output, newline="") as file:
            rows = [*csv.DictReader(file)]
        names = [name for name in rows[0] if name.startswith("probability_")]
        outputs.append([[row[name] for name in names] for row in rows])
    assert outputs[0] != outputs[1]
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert "error with the run" in page.read_text()


def test_without_a_temperature_the_request_is_an_error(run):
    path = run / "model" / CALIBRATION
    content = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(content), "temperature": 0}))
        with pytest.raises(UsageError, match="temperature must be a positive number"):
            finetune.load(run, calibrated=True)
        path.unlink()
        with pytest.raises(UsageError, match="no temperature"):
            finetune.load(run, calibrated=True)
        finetune.load(run)
    finally:
        path.write_text(content)
