"""What the estimators have in common: parameters, training and pickling."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from finetune.evaluation.predictor import load
from finetune.recipe.loading import load_recipe, override_recipe
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig, TrainConfig
from finetune.sklearn.samples import make_examples, make_task_config, parse_samples
from finetune.training.finetuning import train
from task_formats import Example, Prediction, Task, UsageError


@dataclass(eq=False, repr=False)
class TextEstimator(BaseEstimator):
    """Fine-tunes a pretrained decoder on samples and their targets.

    Subclasses describe the parameters, which are the fields, and the targets.
    """

    base: str | Path | Mapping[str, Any] | None = None
    task: str | Path | Recipe | Task | None = None
    format: str | None = None
    _: KW_ONLY
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    lm_coefficient: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    head_dropout: float | None = None
    max_tokens: int | None = None
    incomplete_batch: str | None = None
    layout: str | None = None
    tokens_per_forward: int | None = None
    precision: str | None = None
    folder: str | Path | None = None
    random_state: int | np.random.RandomState | None = None
    device: str | None = None

    def _read_task(self, kind: str, **labels: Any) -> tuple[Recipe, Task]:
        """The recipe before the parameters are applied, and the task that reads the samples.

        Without a task, `labels` are the fields of `TaskConfig` that describe y.
        """
        if self.task is None:
            config = make_task_config(self.format, kind, **labels)
            return Recipe(task=config), config.build()
        if self.format is not None:
            raise UsageError("task and format both say how to read X", cure="Leave one out.")
        if kind != "row":
            what = f"a task reads mappings, but X[0] is a {kind}"
            raise UsageError(what, cure="Give rows with the task's columns, or leave task out.")
        if isinstance(self.task, Task):
            return Recipe(task=TaskConfig.from_task(self.task)), self.task.without_prompt()
        recipe = self.task if isinstance(self.task, Recipe) else load_recipe(self.task)
        return recipe, recipe.task.build().without_prompt()

    def _train(
        self, recipe: Recipe, task: Task, examples: Sequence[Example], reader: Task, kind: str
    ) -> None:
        """Trains on labelled examples of a task, which has the labels of y.

        `reader` is how samples become examples, and `kind` what the samples are.
        """
        data = DataConfig(train=None, evaluate=None)
        recipe = recipe.model_copy(update={"task": TaskConfig.from_task(task), "data": data})
        recipe = override_recipe(recipe, self._overrides())
        with TemporaryDirectory(prefix="gptft-") as temporary:
            run = Path(self.folder or Path(temporary) / "run").absolute()
            train(recipe, run, overwrite=True, task=task, examples=examples, device=self.device)
            self._predictor = load(run, self.device)
        self._reader, self._kind = reader, kind

    def _overrides(self) -> dict[str, Any]:
        """Values of the recipe that the parameters change."""
        path = str(self.base) if self.base is not None else None
        base = self.base if isinstance(self.base, Mapping) else {"path": path}
        seed = self.random_state
        if isinstance(seed, np.random.RandomState):
            seed = seed.randint(2**31)
        settings = {name: getattr(self, name, None) for name in TrainConfig.model_fields}
        values = {f"train.{name}": value for name, value in settings.items()}
        values |= {f"base.{name}": value for name, value in base.items()} | {"train.seed": seed}
        # A grid search gives values of numpy.
        changes = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in values.items()
            if value is not None
        }
        # A fit cannot be resumed, so it needs no checkpoints.
        return changes | {"train.checkpoint_minutes": None, "train.checkpoint_updates": None}

    def _predict_samples(self, X: Iterable[Any]) -> Iterator[Prediction]:
        """Yields the prediction of every sample."""
        check_is_fitted(self)
        kind, samples = parse_samples(X)
        if kind != self._kind:
            raise UsageError(f"X[0] is a {kind}, but fit was called with a {self._kind}")
        return self._predictor.stream(make_examples(self._reader, kind, samples))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_predictor")

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_predictor" in state:
            # The model as the files that a run would have: their names and contents.
            with TemporaryDirectory(prefix="gptft-") as folder:
                state["_predictor"].save(Path(folder))
                paths = [path for path in Path(folder).rglob("*") if path.is_file()]
                contents = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
                state["_predictor"] = contents
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_predictor" in state:
            with TemporaryDirectory(prefix="gptft-") as folder:
                for name, content in state["_predictor"].items():
                    Path(folder, name).parent.mkdir(exist_ok=True)
                    Path(folder, name).write_bytes(content)
                self._predictor = load(folder, self.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array = True, True
        tags.input_tags.two_d_array = False
        return tags
