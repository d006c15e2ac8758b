"""Figures are written for what was fitted."""

import pytest

from finetune.scaling.analysis import fit_points
from tests.scaling.test_points import make_points, profile_points


def test_figures(tmp_path):
    pytest.importorskip("matplotlib", reason="an extra: plots")
    from finetune.scaling.figures import draw_figures

    points = profile_points([1e18, 1e19, 1e20], [0.5, 0.7, 1, 1.4, 2], noise=0.002)
    fits = fit_points(points, bootstrap=20)
    names = draw_figures(points, fits, tmp_path / "a")
    assert names == ["contours.png", "isoflop.png", "power_laws.png", "residuals.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
    assert len({(tmp_path / "a" / name).read_bytes() for name in names}) == 4
    points = make_points([1e7, 1e8, 1e9, 1e10], 1e10)
    fits = fit_points(points, bootstrap=0)
    again = ["power_laws.png", "residuals.png"]
    assert draw_figures(points, fits, tmp_path / "b") == again
