"""Several processes make one job: what one would have made, and nothing half done."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import finetune
import finetune.training.finetuning
from finetune.batching.sampler import BatchConfig
from finetune.checkpointing import checkpoint
from finetune.evaluation.evaluate import compute_logits
from finetune.recipe.schema import Recipe
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train, train_in_processes

# -- equal to one --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "kind"), [(2, "score"), (3, "multiple_choice")])
def test_processes_train_what_one_trains(count, kind, bases, tmp_path) -> None:
    """The same rows in every update, each row evaluated once, losses and weights to rounding."""
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    many = train_in_processes(count, recipe, tmp_path / "many")
    assert_same(one, many)


@pytest.mark.parametrize(
    ("family", "part"),
    [("llama", {}), ("opt_narrow", {}), ("gpt2", {"lora": {"rank": 2}})],
)
def test_weights_that_no_loss_reads_hold_nobody_up(family, part, bases, tmp_path) -> None:
    """An output matrix of its own without an LM loss; adapters."""
    rows = {**ODD, "train": 9, "lm_coefficient": 0}
    recipe = jobs.recipe("entailment", bases(family), tmp_path / "data", base_part=part, **rows)
    one = jobs.train(recipe, tmp_path / "one")
    two = train_in_processes(2, recipe, tmp_path / "two")
    assert jobs.distance(jobs.weights(one), jobs.weights(two)) < 1e-5


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_rounds_cover_every_row_once(processes: int, bases, monkeypatch) -> None:
    """As many rounds on every process, so that they can agree in between."""
    from tests.support import samples

    kind, base = samples.KINDS["multiple_choice"], samples.load(bases("gpt2"))
    model, many = samples.task_model(kind, base), samples.examples(kind, base, 10)
    found, counts = [], set()
    for rank in range(processes):
        place = _Place(process_index=rank, num_processes=processes)
        rounds = list(
            compute_logits(model, many, BatchConfig("packed", base.task_tokens.pad_id, 90), place)
        )
        counts.add(len(rounds))
        found += [index for batch in rounds for index, _ in batch]
    assert sorted(found) == list(range(10))
    assert len(counts) == 1


class _Place:
    """One of several processes, as evaluation sees it."""

    device = torch.device("cpu")

    def __init__(self, process_index: int, num_processes: int) -> None:
        self.process_index, self.num_processes = process_index, num_processes

    def autocast(self):
        import torch

        return torch.autocast("cpu", enabled=False)


# -- signals and states ------------------------------------------------------------------------


def test_a_state_of_two_goes_on_with_two_three_or_one(bases, tmp_path) -> None:
    """A signal to one stops both after the same update, with a whole state."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    run = train_in_processes(2, recipe, tmp_path / "run", stop=2)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (2, [])
    train_in_processes(3, recipe, run, stop=5)
    jobs.train(recipe, run, resume=True)
    assert jobs.distance(jobs.weights(one), jobs.weights(run)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(run), rel=1e-4)


def test_two_processes_go_on_to_the_same_bits(bases, tmp_path) -> None:
    """With dropout, whose random numbers differ between processes."""
    noisy = {**ODD, "head_dropout": 0.1, "base_part": {"dropout": 0.1}}
    recipe = jobs.recipe("similarity", bases("gpt2"), tmp_path / "data", **noisy)
    whole = train_in_processes(2, recipe, tmp_path / "whole")
    run = train_in_processes(2, recipe, tmp_path / "run", stop=3)
    train_in_processes(2, recipe, run)
    assert jobs.distance(jobs.weights(whole), jobs.weights(run)) == 0
    assert jobs.log(whole) == jobs.log(run)
    assert jobs.result(whole) == jobs.result(run)


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


def test_a_signal_to_one_ends_the_evaluation_of_all(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD, evaluations=2)
    whole = train_in_processes(2, recipe, tmp_path / "whole")
    run = train_in_processes(2, recipe, tmp_path / "run", stop=4, function=train_with_a_signal)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (4, [])
    train_in_processes(2, recipe, run)
    jobs.assert_same(whole, run)


# -- as people start them ----------------------------------------------------------------------

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


@pytest.mark.parametrize("fault", ["error", pytest.param("kill", marks=pytest.mark.slow)])
def test_one_that_dies_ends_the_others(fault, command, tmp_path) -> None:
    """The other one waits for it at a barrier, and would do so for half an hour."""
    words = ["-m", "finetune", *command, "--num-processes", "2", "-o", "run"]
    done = call(tmp_path, *words, FAULT=fault)
    assert done.returncode == 1
    first = {"error": "error: process 1: ZeroDivisionError: the cause", "kill": "SIGKILL"}[fault]
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert first in told[0]


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
