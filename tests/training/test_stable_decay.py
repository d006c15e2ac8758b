"""The schedule of warm-up, stable part and decay."""

import pytest

from finetune.pretraining.plan import find_stable_end
from finetune.training.optimizer import stable_decay_factor


@pytest.mark.parametrize(
    ("updates", "decay", "warmup"), [(100, 0.2, 10), (10, 0.5, 0), (7, 0.1, 3)]
)
def test_it_climbs_stays_and_falls_in_equal_steps(updates, decay, warmup):
    end = find_stable_end(updates, decay)
    factors = [stable_decay_factor(t, warmup, end, updates) for t in range(1, updates + 1)]
    assert factors[:warmup] == pytest.approx([t / warmup for t in range(1, warmup + 1)])
    assert set(factors[max(warmup - 1, 0) : end]) == {1.0}
    steps = [a - b for a, b in zip(factors[end - 1 :], [*factors[end:], 0.0], strict=True)]
    assert steps == pytest.approx([1 / (updates - end + 1)] * len(steps))
    assert factors[-1] > 0


def test_the_constant_part_does_not_depend_on_the_length():
    end = find_stable_end(50, 0.2)
    for t in range(1, end + 1):
        longer = stable_decay_factor(t, 5, find_stable_end(200, 0.2), 200)
        assert stable_decay_factor(t, 5, end, 50) == longer
