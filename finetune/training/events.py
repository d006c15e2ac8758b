"""Events that training runs and studies of several runs yield."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from finetune.training.loop import Step
from finetune.training.noise_scale import NoiseScale
from task_formats import UsageError


class Notice(NamedTuple):
    """A message for the user."""

    text: str


class Started(NamedTuple):
    """The run is prepared; the first update comes next."""

    updates: int
    done: int
    """Updates that were done before the run was resumed."""
    examples: int
    evaluation_examples: int
    parameters: int
    """Trainable numbers."""
    device: str
    precision: str
    layout: str
    processes: int
    truncated_tokens: int = 0
    """Tokens that truncation removed from the training examples."""
    truncation_warning: str = ""
    """What is lost if many training examples are longer than the model reads."""
    skipped_rows: int = 0
    """Training rows left out: bad rows, and rows that the data set marks as unlabelled."""
    updates_per_epoch: int = 0


class Evaluated(NamedTuple):
    """Scores on the evaluation split after an update."""

    update: int
    epoch: float
    scores: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Result:
    """What a finished run has reached: scores of the best model, by split."""

    scores: dict[str, dict[str, float]]
    update: int
    """The update after which the best model was saved."""
    updates: int
    """Updates trained."""
    tokens: int
    seconds: float
    folder: Path
    majority: dict[str, dict[str, float]] = field(default_factory=dict)
    """By split, the scores of the most frequent training label (or of the mean score)."""
    noise_scale: NoiseScale | None = None
    """The gradient noise scale of about the last 100 updates, in examples; None if it was not
    measured or is not known."""


class Finished(NamedTuple):
    """The run is finished."""

    result: Result


CellT = TypeVar("CellT")
CellResultT = TypeVar("CellResultT")


class CellStarted(NamedTuple, Generic[CellT]):
    """A cell of a study starts to run, or goes on."""

    cell: CellT
    number: int
    """1, 2, ... among the selected cells."""
    cells: int


class CellFinished(NamedTuple, Generic[CellResultT]):
    """The result of a cell is available."""

    result: CellResultT
    number: int
    cells: int
    reused: bool
    """The cell had been finished by an earlier call."""


class Diverged(UsageError):
    """Training ended because losses, gradients or scores are not finite."""


class Interrupted(Exception):
    """A signal asked the run to stop.

    Attributes:
        folder: The run folder.
        update: The update whose checkpoint was saved; None if the run was still being prepared.
        exit_code: 128 + the number of the signal.
    """

    def __init__(self, folder: Path, update: int | None, exit_code: int) -> None:
        message = f"stopped after update {update}; resume with: gptft resume {folder}"
        if update is None:
            message = "stopped while preparing data; run the same command again"
        super().__init__(message)
        self.folder, self.update, self.exit_code = folder, update, exit_code


Event = Notice | Started | Step | Evaluated | Finished
