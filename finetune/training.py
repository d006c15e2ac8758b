"""Fine-tuning from a recipe to a finished run: a generator of events, and its consumer."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from finetune.evaluation import Round, evaluate, read_rounds
from finetune.job import Job, prepare_job
from finetune.loop import Step, optimize
from finetune.recipe import Recipe
from finetune.signals import StopRequest
from task_formats import Task, UsageError


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


Event = Notice | Started | Step | Evaluated | Finished
