"""Several processes train what one process trains, stop together and resume together."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import finetune
import finetune.training.finetuning
from finetune.batching.sampler import BatchConfig
from finetune.checkpointing import checkpoint
from finetune.cli import launcher, main
from finetune.evaluation.evaluate import compute_logits
from finetune.recipe.schema import Recipe
from finetune.training.finetuning import events
from tests.support import jobs, samples
from tests.support.processes import ODD, assert_same, consume, start, train, train_in_processes


@pytest.mark.parametrize(
    ("count", "kind", "family", "settings"),
    [
        (3, "multiple_choice", "gpt2", {}),
        # Weights that no loss reads: an output matrix without an LM loss, and adapters.
        (2, "score", "llama", {"lm_coefficient": 0}),
        (2, "entailment", "gpt2", {"lm_coefficient": 0, "base_part": {"lora": {"rank": 2}}}),
        pytest.param(2, "score", "gpt2", {}, marks=pytest.mark.slow),
        pytest.param(2, "entailment", "opt_narrow", {"lm_coefficient": 0}, marks=pytest.mark.slow),
    ],
)
def test_processes_train_what_one_trains(count, kind, family, settings, bases, tmp_path) -> None:
    """The same rows in every update, each row evaluated once, losses and weights to rounding."""
    recipe = jobs.recipe(kind, bases(family), tmp_path / "data", **ODD, **settings)
    one = jobs.train(recipe, tmp_path / "one")
    assert_same(one, train_in_processes(count, recipe, tmp_path / "many"))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_evaluate_every_row_once(processes: int, bases) -> None:
    """With as many passes on every process, so that they can agree in between."""
    model, many, pad_id = samples.prepare("multiple_choice", bases("gpt2"), 10)
    rows, counts = [], set()
    for rank in range(processes):
        accelerator = SimpleNamespace(
            device=torch.device("cpu"),
            process_index=rank,
            num_processes=processes,
            autocast=contextlib.nullcontext,
        )
        passes = [*compute_logits(model, many, BatchConfig("packed", pad_id, 90), accelerator)]
        counts.add(len(passes))
        rows += [index for batch in passes for index, _ in batch]
    assert sorted(rows) == list(range(10))
    assert len(counts) == 1


def test_a_checkpoint_of_two_processes_resumes_with_three_or_one(bases, tmp_path) -> None:
    """A signal to one stops both after the same update, with a complete checkpoint."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    run = train_in_processes(2, recipe, tmp_path / "run", stop=2)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (2, [])
    train_in_processes(3, recipe, run, stop=5)
    jobs.train(recipe, run, resume=True)
    assert jobs.distance(jobs.weights(one), jobs.weights(run)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(run), rel=1e-4)


@pytest.fixture(scope="module")
def noisy(bases, tmp_path_factory) -> tuple[Recipe, Path]:
    """A job with dropout, whose random numbers differ between processes, and its run in two."""
    folder = tmp_path_factory.mktemp("noisy")
    recipe = jobs.recipe("similarity", bases("gpt2"), folder / "data", **ODD, **jobs.NOISY)
    return recipe, train_in_processes(2, recipe, folder / "whole")


def test_two_processes_resume_bit_equal(noisy, tmp_path) -> None:
    recipe, whole = noisy
    run = train_in_processes(2, recipe, tmp_path / "run", stop=3)
    train_in_processes(2, recipe, run)
    jobs.assert_same(whole, run)


def overwrite(recipe: Recipe, run: Path, stop: int | None = None) -> int:
    return consume(events(recipe, run, overwrite=True), stop)


def test_two_processes_overwrite_a_finished_run(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    run = jobs.train(jobs.change(recipe, "train", epochs=1), tmp_path / "run")
    train_in_processes(2, recipe, run, function=overwrite)
    assert_same(jobs.train(recipe, tmp_path / "one"), run)


def train_with_a_signal(recipe: Recipe, run: Path, stop: int | None = None) -> int:
    """As `train`; the second process alone gets a signal, in the second evaluation."""
    read, count = finetune.training.finetuning.compute_logits, itertools.count(1)

    def interrupt(*arguments):
        number = next(count)
        for found in read(*arguments):
            if number == 2 and stop and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.training.finetuning, "compute_logits", interrupt)
        return train(recipe, run)


def test_a_signal_to_one_ends_the_evaluation_of_all(noisy, tmp_path) -> None:
    recipe, whole = noisy
    run = train_in_processes(2, recipe, tmp_path / "run", stop=4, function=train_with_a_signal)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (4, [])
    train_in_processes(2, recipe, run)
    jobs.assert_same(whole, run)


TASK = """
    import os, signal
    from task_formats import FORMATS, Classes, Task

    def read(row):
        fault = os.environ.get("FAULT")
        if fault and os.environ.get("RANK") == "1":
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the cause")
        return {**row, "text": row["story"] + " " + row["question"]}

    columns = {"text": "text", "label": "label"}
    labels = Classes.of({0: "no", 1: "so", 2: "yes"})
    task = Task(FORMATS["classification"], columns, labels, convert_row=read)
"""


@pytest.fixture
def command(bases, tmp_path):
    """Words for `python -m finetune` in a folder with a task that Python reads."""
    (tmp_path / "stories.py").write_text(textwrap.dedent(TASK))
    for name, seed in (("train", 0), ("held-out", 1)):
        jobs.write_rows(tmp_path / f"{name}.jsonl", jobs.rows("classification", 10, seed))
    settings = {
        "data.train": f"{tmp_path}/train.jsonl",
        "data.evaluate": f"{tmp_path}/held-out.jsonl",
        "base.dropout": 0,
        "train.head_dropout": 0,
        "train.precision": "fp32",
        "train.epsilon": 1e-3,
        "train.batch_size": 4,
        "train.max_tokens": 64,
        "train.epochs": 1,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", "--task", "stories:task", "--base", str(bases("gpt2")), *sets]


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_command_runs_several(command, tmp_path) -> None:
    done = call(tmp_path, "-m", "finetune", *command, "--num-processes", "2", "-o", "two")
    assert done.returncode == 0, done.stderr
    recipe = finetune.load_recipe(tmp_path / "two" / "recipe.yaml")
    namespace: dict[str, object] = {}
    exec(textwrap.dedent(TASK), namespace)
    one = jobs.train(recipe, tmp_path / "one", task=namespace["task"])
    assert jobs.distance(jobs.weights(one), jobs.weights(tmp_path / "two")) < 1e-5
    alone, together = (jobs.result(tmp_path / run)["scores"]["evaluate"] for run in ("one", "two"))
    assert alone == pytest.approx(together, rel=1e-5)


class Forked:
    """Stands for the `subprocess.Popen` of a command of gptft, and starts at once."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        words = command[command.index("finetune") + 1 :]
        # A process that is not the launcher's own child would end itself.
        env = {name: value for name, value in env.items() if name != launcher._LAUNCHER}
        self._child = start(run_command, words, Path.cwd(), environment=env)
        self.kill, self.wait = self._child.kill, self._child.join

    def poll(self) -> int | None:
        return self._child.exitcode


def run_command(words: list[str], folder: Path) -> int:
    os.chdir(folder)
    return main(words)


@pytest.mark.parametrize("fault", ["error", "kill"])
def test_one_that_dies_ends_the_others(fault, command, tmp_path, monkeypatch, capfd) -> None:
    """Without that the other one would wait at a barrier for half an hour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAULT", fault)
    with monkeypatch.context() as patch:
        patch.setattr(launcher.subprocess, "Popen", Forked)
        assert launcher.run_processes([*command, "-o", "run"], 2) == 1
    first = {"error": "error: process 1: ZeroDivisionError: the cause", "kill": "SIGKILL"}[fault]
    (message,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert first in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_run_several(launcher, command, tmp_path) -> None:
    module = [] if "accelerate" in launcher[1] else ["-m"]
    words = [*launcher, *module, *(["--module"] if not module else []), "finetune", *command]
    done = call(tmp_path, *words, "-o", "two", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    one = call(tmp_path, "-m", "finetune", *command, "-o", "one")
    assert one.returncode == 0, one.stderr
    runs = [tmp_path / name for name in ("one", "two")]
    assert jobs.distance(*map(jobs.weights, runs)) < 1e-5
