"""Tables of measured losses, IsoFLOP profiles, and doubts about the design."""

import numpy as np
import pytest

from finetune.scaling.analysis import fit_points, read_fits, write_fits
from finetune.scaling.extrapolation import extrapolate
from finetune.scaling.isoflop import fit_isoflop
from finetune.scaling.laws import LAWS
from finetune.scaling.points import Points, read_points
from task_formats import UsageError
from tests.scaling.losses import TRUE


def make_points(n, d, noise=0.0, factor=6.0):
    n, d = np.broadcast_arrays(np.asarray(n, dtype=float), np.asarray(d, dtype=float))
    n, d = n.ravel(), d.ravel()
    law = LAWS["hoffmann"]
    theta = np.log([TRUE["hoffmann"][name] for name in law.constants])
    error = noise * np.random.default_rng(0).standard_normal(len(n))
    loss = np.exp(law.log_loss(theta, np.log(np.column_stack([n, d]))) + error)
    return Points({"N": n, "D": d, "C": factor * n * d}, loss, {}, 0)


def profile_points(budgets, ratios, noise=0.0):
    """Model sizes around the true optimum of each budget, by these ratios."""
    budgets = np.asarray(budgets)[:, None]
    best = np.exp(
        LAWS["hoffmann"].best_log_parameters(
            np.log([TRUE["hoffmann"][name] for name in LAWS["hoffmann"].constants]), 0.0
        )
    )
    exponent = TRUE["hoffmann"]["beta"] / (TRUE["hoffmann"]["alpha"] + TRUE["hoffmann"]["beta"])
    n = best * (budgets / 6) ** exponent * np.asarray(ratios)
    return make_points(n, budgets / 6 / n, noise)


def test_columns_are_guessed_and_compute_is_6nd(tmp_path):
    (tmp_path / "a.csv").write_text("Model Size,train_tokens,seed,val_loss\n1e6,1e8,0,4.5\n")
    (tmp_path / "b.csv").write_text("Model Size,train_tokens,seed,val_loss\n2e6,1e8,0,4.25\n")
    points = read_points(tmp_path)
    assert points.columns == {"N": "Model Size", "D": "train_tokens", "loss": "val_loss"}
    assert points.values["C"].tolist() == [6e14, 12e14]
    assert (points.computed, points.flops_factor) == (2, 6.0)
    assert points.loss.tolist() == [4.5, 4.25]


def test_columns_can_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("loss,nats,size,n\n9,4.5,1e6,1\n")
    points = read_points(tmp_path / "a.csv", {"loss": "nats", "N": "size"})
    assert (points.loss.tolist(), points.values["N"].tolist()) == ([4.5], [1e6])
    assert points.computed == 0


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("N,D\n1,2\n", {}, "no column of losses"),
        ("width,loss\n1,2\n", {}, "no column of N, D or C"),
        ("N,loss\n1,2\n3,\n", {}, "line 3: loss .column 'loss'. is '', not a positive number"),
        ("N,loss\n-1,2\n", {}, "N .column 'N'. is '-1', not a positive number"),
        ("N,loss\n1,2\n", {"N": "M"}, "there is no column 'M'"),
        ("N,loss\n1,2\n", {"K": "N"}, "there is no variable 'K'"),
        ("N,loss\n", {}, "there are no rows"),
    ],
)
def test_wrong_tables_are_refused(text, columns, message, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_points(tmp_path / "a.csv", columns)


def test_the_points_with_the_highest_loss_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("N,D,loss\n1e6,1e8,4\n2e6,1e8,5\n3e6,1e8,3\n4e6,1e8,5\n")
    points = read_points(tmp_path / "a.csv", leave_out_highest=1)
    assert points.loss.tolist() == [4, 5, 3]
    assert points.values["N"].tolist() == [1e6, 2e6, 3e6]
    assert (points.computed, points.left_out) == (3, (f"{tmp_path / 'a.csv'}, line 5",))
    with pytest.raises(UsageError, match="leaving out 4 of 4 points leaves none"):
        read_points(tmp_path / "a.csv", leave_out_highest=4)


def test_laws_of_one_variable_are_fitted_to_the_frontier():
    points = make_points([[1e7], [1e8], [1e9]], [1e9, 1e10, 1e11])
    fits = fit_points(points, bootstrap=0)
    assert fits.indices["L(N)"] == (2, 5, 8)
    assert fits.indices["L(D)"] == (6, 7, 8)
    assert len(fit_points(points, bootstrap=0, all_points=True).indices["L(N)"]) == 9


def test_a_constant_ratio_of_tokens_and_parameters_is_a_warning():
    n = np.geomspace(1e7, 1e10, 12)
    [doubt] = [note for note in notes_of(n, 20 * n) if note.startswith("hoffmann: D/N")]
    assert "a factor of 1 only" in doubt
    assert not any("D/N" in note for note in notes_of([[1e7], [1e8], [1e9]], [1e9, 1e10, 1e11]))


def test_losses_without_a_limit_are_noted():
    n, d = np.meshgrid(np.geomspace(1e5, 1e7, 5), np.geomspace(1e6, 1e8, 5))
    loss = 20 / n**0.1 + 30 / d**0.15
    points = Points({"N": n.ravel(), "D": d.ravel()}, loss.ravel(), {}, 0)
    assert any("hoffmann: E is 0" in note for note in fit_points(points, bootstrap=0).notes)
    assert not any("E is 0" in note for note in notes_of(n, d))


def notes_of(n, d):
    return fit_points(make_points(n, d, noise=0.003), bootstrap=0).notes


def test_isoflop_minima_are_those_of_the_law():
    points = profile_points(10.0 ** np.arange(18, 22), [0.5, 0.7, 1, 1.4, 2])
    found = fit_isoflop(points, bootstrap=20)
    exponent = TRUE["hoffmann"]["beta"] / (TRUE["hoffmann"]["alpha"] + TRUE["hoffmann"]["beta"])
    assert found.exponent.value == pytest.approx(exponent, abs=0.002)
    assert [profile.refused for profile in found.profiles] == [""] * 4


@pytest.mark.parametrize(
    ("ratios", "side"), [([1.1, 2, 3, 4], "smaller"), ([0.2, 0.3, 0.5, 0.9], "larger")]
)
def test_isoflop_minima_at_the_edge_are_refused(ratios, side):
    found = fit_isoflop(profile_points([1e19, 1e20], ratios), bootstrap=20)
    assert all(side in profile.refused for profile in found.profiles)
    assert found.exponent is None


def test_fits_are_read_as_they_were_written(tmp_path):
    points = profile_points([1e18, 1e19, 1e20], [0.5, 0.7, 1, 1.4, 2], noise=0.002)
    fits = fit_points(points, bootstrap=20)
    write_fits(fits, tmp_path / "fit.json", {"source": "x"})
    assert read_fits(tmp_path / "fit.json") == fits
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(UsageError, match="not a file of fits"):
        read_fits(tmp_path / "other.json")


def test_a_fit_to_the_small_runs_predicts_the_large_ones_of_the_same_law():
    grid = [[1e7], [1e8], [1e9], [1e10]], [1e9, 1e10, 1e11, 1e12]
    found = {item.law: item for item in extrapolate(make_points(*grid), 0.5, bootstrap=0)}
    assert found["hoffmann"].points == len(found["hoffmann"].predictions) == 8
    assert found["hoffmann"].rms < 1e-6 < found["kaplan"].rms
    noisy = extrapolate(make_points(*grid, noise=0.002), 0.75, bootstrap=40)[1]
    assert (noisy.points, len(noisy.predictions)) == (12, 4)
    assert abs(noisy.bias) <= noisy.rms < 0.02
    assert all(p.predicted.low <= p.predicted.value <= p.predicted.high for p in noisy.predictions)
    with pytest.raises(UsageError, match="leaves none to fit or none to predict"):
        extrapolate(make_points(*grid), 1.0)


def test_the_predicted_runs_are_those_with_the_most_compute():
    points = make_points([[1e7], [1e8], [1e9]], [1e9, 1e10, 1e11])
    [found, _] = extrapolate(points, 0.7, bootstrap=0)
    assert [item.place for item in found.predictions] == ["point 6", "point 8", "point 9"]
    assert found.compute == 6e18
