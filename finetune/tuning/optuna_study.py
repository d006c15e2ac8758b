"""Optuna's study of a search: proposes values, and keeps what they reached."""

import csv
import io
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.checkpointing.run_folder import lock_folder
from finetune.recipe.differences import describe_difference
from finetune.recipe.loading import override_recipe
from finetune.recipe.schema import SEED_LIMIT, Recipe
from finetune.recipe.yaml_documents import read_document, write_document
from finetune.storage import files
from finetune.tuning.ranges import Choices, Interval, Space
from finetune.tuning.trial import Search, State, Trial, compute_value
from task_formats import UsageError

if TYPE_CHECKING:
    import optuna

DATABASE, SEARCH, TRIALS, TABLE, BEST = (
    "study.db", "search.yaml", "trials", "trials.csv", "best.yaml",
)  # fmt: skip
_STATES: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
_NAME = "gptft"


class TrialResult(NamedTuple):
    """A trial: its values, and what they reached."""

    number: int
    """1, 2, ..."""
    values: dict[str, Any]
    """Dotted key of the recipe to value."""
    state: State
    scores: dict[str, float]
    """Metric to mean over the seeds, of the best checkpoints on the evaluation split. Of a trial
    that was pruned, the scores when it was stopped."""
    value: float
    """What is maximized: the metric that selects checkpoints; NaN without scores."""
    seconds: float
    """Spent on training and evaluation."""
    reason: str = ""
    """Why it failed."""


class OptunaStudy:
    """Optuna's study of a folder, which one process at a time uses."""

    def __init__(self, recipe: Recipe, folder: Path, search: Search, lock: Any) -> None:
        self.recipe, self.folder, self.search = recipe, folder, search
        self._lock, self._storage = lock, open_storage(folder)
        self._study = load_study(self._storage)
        self._trials: dict[int, optuna.Trial] = {}

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, search: Search, overwrite: bool) -> "OptunaStudy":
        """Locks the folder and checks that a search in it is this one."""
        with files.explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        known = (folder / SEARCH).exists()
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others and not known:
            what = f"Directory is not empty: it holds {', '.join(sorted(others)[:3])}"
            cure = "Choose an empty directory, or one that does not exist yet."
            raise UsageError(what, where=str(folder), cure=cure)
        lock = lock_folder(folder)
        try:
            if overwrite:
                for name in (TRIALS, DATABASE, TABLE, BEST, SEARCH):
                    files.remove(folder / name)
            description = _describe(recipe, search)
            if (folder / SEARCH).exists():
                _check_same_search(folder, description)
            else:
                files.write_atomically(folder / SEARCH, write_document(description))
            return cls(recipe, folder, search, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Closes the database and unlocks the folder."""
        close_storage(self._storage)
        self._lock.release()

    def propose(self, trials: int) -> tuple[int, dict[str, Any]] | None:
        """Returns number and values of the next trial, or None after the last one.

        A trial that was interrupted comes first.
        """
        import optuna

        found = self._study.get_trials(deepcopy=False)
        running = [trial.number for trial in found if trial.state.name == "RUNNING"]
        done = len([trial for trial in found if trial.state.is_finished()])
        if not running and done >= trials:
            return None
        number = running[0] if running else done
        seed = (self.search.seeds[0] + 1000 * number) % SEED_LIMIT
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        if running:
            study_id = self._storage.get_study_id_from_name(_NAME)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
            trial = optuna.Trial(self._study, trial_id)
        else:
            if not found:
                self._study.enqueue_trial(self._own_values())
            trial = self._study.ask()
        self._trials[trial.number + 1] = trial
        values = {key: _suggest(trial, key, domain) for key, domain in self.search.space.items()}
        return trial.number + 1, values

    def _own_values(self) -> dict[str, Any]:
        """The recipe's values that are in their ranges, as Optuna names them."""
        own = {}
        for key, domain in self.search.space.items():
            value: Any = self.recipe.model_dump()
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if domain.contains(value):
                own[key] = _encode(value) if isinstance(domain, Choices) else value
        return own

    def report(self, number: int, step: int, value: float) -> bool:
        """Notes an evaluation; returns whether the trial is to be stopped."""
        trial = self._trials[number]
        frozen = self._study.get_trials(deepcopy=False)[number - 1]
        if step not in frozen.intermediate_values:  # A resumed run repeats some.
            trial.report(value, step)
        return trial.should_prune()

    def finish(self, number: int, run: Trial) -> tuple[TrialResult, TrialResult | None]:
        """Saves the result of a trial; returns it and the best trial so far."""
        import optuna

        trial, state = self._trials.pop(number), run.state
        split = [next(iter(result["scores"].values())) for result in run.results]
        scores = {name: fmean(row[name] for row in split) for name in split[0]} if split else {}
        value: float | None = compute_value(run.recipe, scores) if state == "finished" else None
        if state == "finished" and not math.isfinite(value or 0):
            state, run.reason = "failed", "its scores are not finite"
        for result in run.results:
            self._check_same_data(result["made_with"]["data"])
        trial.set_user_attr("scores", run.stopped_at if state == "pruned" else scores)
        trial.set_user_attr("seconds", run.seconds or sum(r["seconds"] for r in run.results))
        trial.set_user_attr("reason", run.reason)
        states = {name: state for state, name in _STATES.items()}
        finished = state == "finished"
        state_of_optuna = optuna.trial.TrialState[states[state]]
        self._study.tell(trial, value if finished else None, state=state_of_optuna)
        found = [read_trial(self.recipe, t) for t in self._study.get_trials(deepcopy=False)]
        best = next((t for t in sort_trials(found) if t.state == "finished"), None)
        files.write_atomically(self.folder / TABLE, _write_csv(self.search.space, found))
        if best is not None:
            files.write_atomically(self.folder / BEST, write_best(self.recipe, best, len(found)))
        return found[number - 1], best

    def _check_same_data(self, fingerprints: Any) -> None:
        known = self._study.user_attrs.get("data")
        if known is None:
            self._study.set_user_attr("data", fingerprints)
        elif known != fingerprints:
            what = "the data have changed since the search began, so scores are not comparable"
            cure = "Start again in another folder, or with --overwrite."
            raise UsageError(what, where=str(self.folder), cure=cure)


def _suggest(trial: "optuna.Trial", key: str, domain: Interval | Choices) -> Any:
    if isinstance(domain, Choices):
        text = trial.suggest_categorical(key, [_encode(value) for value in domain.values])
        return next(value for value in domain.values if _encode(value) == text)
    if domain.whole:
        return trial.suggest_int(key, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, log=domain.log)


def _encode(value: Any) -> Any:
    """A choice as Optuna stores it: mappings and lists are text."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list | tuple) else value


def open_storage(folder: Path) -> "optuna.storages.RDBStorage":
    """Opens the database of a search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / DATABASE
    # Not a path in a URL, where some characters have a meaning.
    options = {"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
    with files.explain_os_errors(path):
        return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=options)


def close_storage(storage: "optuna.storages.RDBStorage") -> None:
    """Closes the database."""
    storage.remove_session()
    storage.engine.dispose()


def load_study(storage: "optuna.storages.RDBStorage") -> "optuna.Study":
    """Returns the study in a database, a new one in a new database."""
    import optuna

    return optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(),
        load_if_exists=True,
    )


def _describe(recipe: Recipe, search: Search) -> dict[str, Any]:
    """What may not change when a search goes on. Paths count here: scores must be comparable."""
    fixed = recipe.fixed_on_resume(("task", "base", "head", "data", "train"))
    fixed |= {"base.path": recipe.base.path, "base.revision": recipe.base.revision}
    fixed |= {"train.patience": recipe.train.patience}
    del fixed["train.seed"]
    values = {key: value for key, value in fixed.items() if key not in search.space}
    ranges = {key: str(domain) for key, domain in search.space.items()}
    plain = {"recipe": values, "ranges": ranges, "seeds": search.seeds, "prune": search.prune}
    return dict(json.loads(json.dumps(plain)))


def _check_same_search(folder: Path, new: Mapping[str, Any]) -> None:
    """Raises UsageError if the search in a folder has another recipe, ranges or seeds."""
    old = read_document(folder / SEARCH).data
    if difference := describe_difference(_flatten(old), _flatten(new)):
        what = f"the search in this directory has another {difference}"
        cure = "Choose another directory with -o, or use --overwrite to delete it."
        raise UsageError(what, where=str(folder), cure=cure)


def _flatten(description: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the recipe, the ranges and the other settings by name."""
    flat: dict[str, Any] = {}
    for key, value in description.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat


def read_trial(recipe: Recipe, trial: Any) -> TrialResult:
    """Returns a trial of Optuna as ours."""
    attributes = trial.user_attrs
    values = {key: _decode(value, trial.distributions[key]) for key, value in trial.params.items()}
    scores = attributes.get("scores", {})
    state: State = _STATES.get(trial.state.name, "running")
    value = compute_value(recipe, scores) if scores else math.nan
    seconds, reason = attributes.get("seconds", 0.0), attributes.get("reason", "")
    return TrialResult(trial.number + 1, values, state, scores, value, seconds, reason)


def _decode(value: Any, distribution: Any) -> Any:
    is_text = isinstance(value, str) and value[:1] in "{[" and hasattr(distribution, "choices")
    return json.loads(value) if is_text else value


def sort_trials(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """Finished trials from best to worst (the first of equals first), then the others."""
    order = ("finished", "pruned", "running", "failed")

    def key(trial: TrialResult) -> tuple[int, float, int]:
        value = -math.inf if math.isnan(trial.value) else trial.value
        return order.index(trial.state), -value, trial.number

    return sorted(trials, key=key)


def write_best(recipe: Recipe, best: TrialResult, trials: int) -> str:
    """Returns the recipe with the values of a trial as YAML, with a comment that says its score."""
    scores = ", ".join(f"{name} {score:.4f}" for name, score in best.scores.items())
    head = f"# gptft tune: trial {best.number} of {trials}, {scores} on the evaluation split.\n"
    return head + override_recipe(recipe, best.values).to_yaml()


def _write_csv(space: Space, trials: Sequence[TrialResult]) -> str:
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.scores))
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["trial", *space, *metrics, "state", "seconds", "reason"])
    for trial in trials:
        row = [trial.number, *(_encode(trial.values.get(key)) for key in space)]
        row += [trial.scores.get(name, "") for name in metrics]
        table.writerow([*row, trial.state, round(trial.seconds, 1), trial.reason])
    return stream.getvalue()
