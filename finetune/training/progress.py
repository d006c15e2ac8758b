"""Counters of a run, and the schedule of evaluations and checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune.batching.sampler import EpochSampler
from finetune.training.loop import Step
from finetune.training.noise_scale import MomentAverages


@dataclass
class TrainingProgress:
    """What a checkpoint stores besides tensors.

    Everything but `seconds` is the same however often the run was resumed.
    """

    update: int = 0
    evaluated_update: int = 0
    """The last update whose evaluation is finished."""
    best_value: float = -math.inf
    best_update: int = 0
    """0 before the first evaluation with finite scores."""
    evaluations_since_best: int = 0
    tokens: int = 0
    seconds: float = 0.0
    consecutive_nonfinite: int = 0
    """Updates without finite loss and gradients, up to the last one."""
    max_tokens_per_forward: int | None = None
    """After any halving because memory ran out."""
    gradient_moments: MomentAverages = field(default_factory=MomentAverages)
    """For the noise scale."""

    def record_step(self, step: Step) -> None:
        """Counts an update."""
        self.update, self.max_tokens_per_forward = step.number, step.max_tokens_per_forward
        self.tokens += step.tokens
        self.seconds += step.seconds

    def record_evaluation(self, update: int, value: float) -> bool:
        """Counts an evaluation; returns whether it is the best so far (the first of equals).

        NaN is never the best.
        """
        self.evaluated_update = update
        is_best = value > self.best_value
        if is_best:
            self.best_value, self.best_update, self.evaluations_since_best = value, update, 0
        else:
            self.evaluations_since_best += 1
        return is_best

    def forget_best(self) -> None:
        """Makes the next evaluation the best so far."""
        self.best_value, self.best_update = -math.inf, 0


class CheckpointTimer:
    """Says when the next checkpoint is due."""

    def __init__(self, minutes: float | None, updates: int | None) -> None:
        self._minutes, self._updates = minutes, updates
        self._last = time.monotonic()

    def is_due(self, update: int) -> bool:
        """Whether an interval of time or of updates has ended; a new one then begins."""
        late = self._minutes and time.monotonic() - self._last >= 60 * self._minutes
        turn = self._updates and update % self._updates == 0
        if late or turn:
            self._last = time.monotonic()
        return bool(late or turn)


def plan_evaluations(sampler: EpochSampler, per_epoch: int) -> Callable[[int], bool]:
    """Returns whether to evaluate after an update: evenly in each epoch, and after the last."""
    updates = sampler.updates_per_epoch
    count = min(per_epoch, updates)
    due = {max(1, round(updates * k / count)) for k in range(1, count + 1)}
    return lambda update: update == sampler.updates or (update - 1) % updates + 1 in due


def spread_evenly(updates: int, evaluations: int) -> Callable[[int], bool]:
    """Returns whether to evaluate after an update: the k-th time after ⌈updates · k / count⌉."""
    count = evaluations
    return lambda update: update * count // updates > (update - 1) * count // updates
