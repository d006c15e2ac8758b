"""What the course of a run needs to know of a job, whatever is trained."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.batching.sampler import EpochSampler
from finetune.evaluation.evaluate import BatchConfig, RowLogits
from finetune.training.events import Notice, Started
from finetune.training.loop import LoopSettings, MicroBatches

Watch = Callable[[Iterable[RowLogits]], Iterator[RowLogits]]
"""The rounds of an evaluation as they come, left between two when a signal asks for the end."""


class EvaluationSchedule(NamedTuple):
    """When a run pauses between two updates."""

    due: Callable[[int], bool]
    """Whether to evaluate after an update."""
    patience: int | None
    """Evaluations without a better score after which to stop."""
    checkpoint_minutes: float | None
    checkpoint_updates: int | None
    most_refused: int
    """Updates refused in a row after which to stop."""

    @property
    def keeps_states(self) -> bool:
        """False where only a signal has a whole state saved."""
        return bool(self.checkpoint_minutes or self.checkpoint_updates)


class SplitSource(NamedTuple):
    """What was read for a split: its fingerprint, and the number of its examples."""

    fingerprint: str
    rows: int


class EvaluationScores(NamedTuple):
    """The scores of an evaluation, and the number that decides which is the best: more is."""

    scores: dict[str, float]
    value: float


class TrainingJob(Protocol):
    """Fine-tuning or pre-training, made ready: a model, its data, and how to judge it."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def parallel_model(self) -> nn.Module:
        """The model as its processes share it; the model itself on one process."""

    @property
    def optimizer(self) -> AdamW:
        """What changes its weights."""

    @property
    def accelerator(self) -> Accelerator:
        """This process among its peers."""

    @property
    def batch_config(self) -> BatchConfig:
        """How batches are made."""

    @property
    def sampler(self) -> EpochSampler:
        """Which examples every update reads."""

    @property
    def settings(self) -> LoopSettings:
        """What the loop needs to know besides batches."""

    @property
    def schedule(self) -> EvaluationSchedule:
        """When to evaluate, to save and to give up."""

    def make_microbatches(self, update: int, budget: int | None) -> MicroBatches:
        """The forward passes of an update on this process, and the size of the whole update."""

    def find_nonfinite_examples(self, update: int) -> list[str]:
        """Ids of the update's examples whose loss is not finite; all of them where none is."""

    def started(self, done: int) -> Started:
        """What there is to say before the first update."""

    def notices(self) -> Iterator[str]:
        """What a person should know before."""

    def config_yaml(self) -> str:
        """What the run was told, as YAML with every value written out."""

    def decisions(self, told: str | None = None) -> dict[str, Any]:
        """Dotted keys of what decides what is computed, in its own telling or in another."""

    def sources(self) -> dict[str, SplitSource]:
        """What was read, by split."""

    def origins(self) -> dict[str, str]:
        """Fingerprints of the base's parts; empty where there is no base."""

    def rounds(self) -> Iterator[RowLogits] | None:
        """The evaluation split, a forward pass at a time; None where there is none."""

    def judge(self, rounds: Iterable[RowLogits]) -> EvaluationScores:
        """The scores of all rounds."""

    def save_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Writes the model as it is now; with `weights`, where it is in shards, those."""

    def final_scores(
        self, folder: Path, watch: Watch
    ) -> Iterator[Notice | tuple[str, dict[str, float]]]:
        """The scores, by split, of the model that was saved in a folder."""
