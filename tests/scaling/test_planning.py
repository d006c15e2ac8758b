"""Plans spend the budget where the loss is least."""

import numpy as np
import pytest

from finetune.scaling.laws import LAWS, PF_DAY, SOURCES
from finetune.scaling.planning import (
    allocate,
    compute_critical_batch,
    plan_by_hoffmann,
    plan_by_kaplan,
)
from tests.scaling.losses import TRUE


@pytest.mark.parametrize("name", ["kaplan", "hoffmann"])
@pytest.mark.parametrize("compute", [1e18, 1e24])
def test_no_other_model_of_the_budget_has_a_lower_loss(name, compute):
    law = LAWS[name]
    n, d, loss = allocate(law, TRUE[name], compute, 6.0)
    assert 6 * n * d == pytest.approx(compute)
    assert law.loss(TRUE[name], N=n, D=d) == pytest.approx(loss)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert law.loss(TRUE[name], N=n * factor, D=d / factor) > loss


def test_the_refit_has_about_20_tokens_per_parameter_at_the_budget_of_chinchilla():
    found = plan_by_hoffmann(5.76e23, SOURCES.refit, rate=1e18).allocation
    assert 15 < found.tokens.value / found.parameters.value < 25


def test_kaplans_plan_at_one_petaflop_day_of_least_compute():
    found = plan_by_kaplan(2 * PF_DAY, rate=PF_DAY)
    assert found.allocation.parameters.value == pytest.approx(1.3e9)
    assert found.allocation.tokens.value == pytest.approx(2.2e10, rel=0.02)
    assert found.batch == pytest.approx(compute_critical_batch(found.allocation.loss.value))
    assert found.seconds == 2
    # Appendix A: 2.0e6 tokens at the critical batch, 5.4e3 updates at least, twice that here.
    assert found.batch == pytest.approx(2.0e6, rel=0.1)
    assert found.updates == pytest.approx(2 * 5.4e3, rel=0.1)


def test_a_small_batch_wastes_no_compute():
    """C_min approaches C, so the model is larger; Kaplan et al., equation 5.5."""
    ratio = [plan_by_kaplan(PF_DAY, batch=batch).allocation.parameters.value for batch in (1, None)]
    assert np.divide(*ratio) == pytest.approx(2**0.73, rel=1e-4)
