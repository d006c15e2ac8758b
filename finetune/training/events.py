"""What a training run tells whoever consumes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from finetune.training.loop import Step


class Notice(NamedTuple):
    """Something worth a line to the person who started the run."""

    text: str


class Started(NamedTuple):
    """What is about to be trained, and how."""

    updates: int
    done: int
    """Updates that a resumed run has behind it."""
    examples: int
    evaluated: int
    parameters: int
    device: str
    precision: str
    layout: str
    processes: int
    cut: int
    """Training tokens that truncation took away."""
    skipped: int
    """Training rows left out, as bad ones or as unlabelled by the data set's convention."""


class Evaluated(NamedTuple):
    """Scores on the evaluation split after an update."""

    update: int
    epoch: float
    scores: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Result:
    """What a finished run has reached: the best state's scores, by split."""

    scores: dict[str, dict[str, float]]
    update: int
    """The update after which the best state was saved."""
    updates: int
    tokens: int
    seconds: float
    folder: Path


class Finished(NamedTuple):
    """The end."""

    result: Result


class Interrupted(Exception):
    """A signal asked the run to stop, and a whole state of `update` is on the disk.

    None: it was stopped before its data was ready, with whatever states it had before.
    """

    def __init__(self, folder: Path, update: int | None, exit_code: int) -> None:
        words = f"stopped after update {update}; go on with: gptft resume {folder}"
        if update is None:
            words = "stopped while the data was made ready; the same command does it again"
        super().__init__(words)
        self.folder, self.update, self.exit_code = folder, update, exit_code


Event = Notice | Started | Step | Evaluated | Finished
