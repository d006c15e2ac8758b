"""Where a run stands: what its events have said so far, and the speed they came at."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from finetune.training.events import Evaluated, Started
from finetune.training.loop import Step

_WINDOW = 30.0
"""Seconds of updates over which speed is measured."""


@dataclass
class Standing:
    """What is known of a run from its events. Evaluations do not count as time of updates."""

    clock: Callable[[], float] = time.monotonic
    started: Started | None = None
    step: Step | None = None
    best: Evaluated | None = None
    _then: float = 0.0
    _spent: deque[tuple[float, int]] = field(default_factory=deque)
    """(seconds, tokens) of the last updates."""
    _seconds: float = 0.0
    _tokens: int = 0

    def start(self, event: Started) -> None:
        """The run has been prepared."""
        self.started, self._then = event, self.clock()

    def take(self, step: Step) -> None:
        """An update has been made."""
        now = self.clock()
        self._count(now - self._then, step.tokens)
        self.step, self._then = step, now
        while len(self._spent) > 1 and self._seconds > _WINDOW:
            seconds, tokens = self._spent.popleft()
            self._seconds, self._tokens = self._seconds - seconds, self._tokens - tokens

    def _count(self, seconds: float, tokens: int) -> None:
        self._spent.append((seconds, tokens))
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + tokens

    def evaluate(self, event: Evaluated) -> None:
        """The model has been scored."""
        self._then = self.clock()
        self.best = event if event.best else self.best

    @property
    def update(self) -> int:
        """Updates behind us."""
        return self.step.number if self.step else self.started.done if self.started else 0

    @property
    def updates(self) -> int:
        """All updates of the run."""
        return self.started.updates if self.started else 0

    @property
    def tokens_per_second(self) -> float:
        """Over the last updates, all processes together."""
        return self._tokens / max(self._seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """For the updates to come, at the speed of the last ones; None before the first."""
        if not self._spent:
            return None
        return (self.updates - self.update) * self._seconds / len(self._spent)


def say_losses(step: Step) -> str:
    """The losses of a step, and its rate. Reading them waits for the device."""
    total, task, lm = (float(loss) for loss in step.losses)
    parts = [f"loss {total:.4f}", f"task {task:.4f}"]
    parts += [f"lm {lm:.4f}"] if total != task else []
    return "  ".join([*parts, f"rate {step.learning_rate:.2e}"])


def say_scores(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def say_time(seconds: float | None) -> str:
    """Minutes and seconds, or hours as well.

    >>> say_time(83.2), say_time(3600 * 5 + 62), say_time(None)
    ('1:23', '5:01:02', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
