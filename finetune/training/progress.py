"""How far a run has come: what a checkpoint remembers besides tensors."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune.batching.sampler import EpochSampler
from finetune.recipe.schema import TaskConfig
from finetune.training.job import EvaluationSchedule
from finetune.training.loop import Step

_LOWER_IS_BETTER = {"mse", "loss"}


@dataclass
class TrainingProgress:
    """Counters of a run. Everything but `seconds` is the same however often it was resumed."""

    update: int = 0
    evaluated: int = 0
    """The last update whose evaluation is done."""
    best: float = -math.inf
    best_update: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    tokens: int = 0
    seconds: float = 0.0
    refused: int = 0
    """Updates refused in a row, for numbers that are not finite."""
    budget: int | None = None
    """Tokens in a forward pass, after any halving for want of memory."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "TrainingProgress":
        """What a checkpoint remembered. ValueError or TypeError where that makes no sense."""
        if not all(value is None or isinstance(value, int | float) for value in facts.values()):
            raise ValueError("its progress holds something else than numbers")
        found = cls(**facts)
        if not all(type(n) is int and n >= 0 for n in (found.update, found.tokens, found.refused)):
            raise ValueError("its progress counts backwards")
        return found

    def facts(self) -> dict[str, Any]:
        """What a checkpoint shall remember."""
        return asdict(self)

    def advance(self, step: Step) -> None:
        """Counts one more update."""
        self.update, self.budget = step.number, step.max_tokens_per_forward
        self.tokens += step.tokens
        self.seconds += step.seconds

    def note(self, update: int, value: float) -> bool:
        """Counts an evaluation; True where it is the best so far (the first wins a tie)."""
        self.evaluated = update
        # Nothing is more than a NaN: as the best it would stay for ever.
        value = -math.inf if math.isnan(value) else value
        better = value > self.best or self.best_update == 0
        self.best, self.best_update = (value, update) if better else (self.best, self.best_update)
        self.stale = 0 if better else self.stale + 1
        return better

    def forget_best(self) -> None:
        """As if nothing had been evaluated: the next evaluation is the best so far."""
        self.best, self.best_update = -math.inf, 0


class CheckpointTimer:
    """Says when the next checkpoint is due, in minutes or updates."""

    def __init__(self, rhythm: EvaluationSchedule) -> None:
        self._minutes, self._updates = rhythm.checkpoint_minutes, rhythm.checkpoint_updates
        self._saved = time.monotonic()

    def due(self, update: int) -> bool:
        """True when an interval is over; it then begins anew."""
        late = self._minutes and time.monotonic() - self._saved >= 60 * self._minutes
        turn = self._updates and update % self._updates == 0
        if late or turn:
            self._saved = time.monotonic()
        return bool(late or turn)


def plan_evaluations(order: EpochSampler, evaluations: int) -> Callable[[int], bool]:
    """Whether to evaluate after an update: evenly within each epoch, and after the last."""
    per_epoch = order.updates_per_epoch
    count = min(evaluations, per_epoch)
    steps = {max(1, round(per_epoch * k / count)) for k in range(1, count + 1)}
    return lambda update: update == order.updates or (update - 1) % per_epoch + 1 in steps


def selection_value(part: TaskConfig, scores: Mapping[str, float]) -> float:
    """What decides which state is the best: the first metric or the mean of all; more is better."""
    chosen = part.metrics if part.select == "mean" else part.metrics[:1]
    signs = [-1.0 if metric in _LOWER_IS_BETTER else 1.0 for metric in chosen]
    values = [sign * scores[metric] for sign, metric in zip(signs, chosen, strict=True)]
    return math.fsum(values) / len(values)
