"""Shards out of memory: whoever lacks it finds out alone, and all make the update in pieces."""

import functools
import json
import os
import re
import subprocess
import sys
import textwrap
import time

import jobs
import pytest
import torch
from together import SHARDS, assert_everywhere
from torch import nn

import finetune.job
import finetune.loop
from finetune import checkpoint, rehearsal
from finetune.batch import send
from finetune.devices import start_processes
from finetune.loop import optimize, tokens_read
from finetune.losses import objective
from finetune.model import TaskModel
from finetune.sampling import measure
from finetune.sharding import gather_weights, reshard

FEW = {"train": 22, "batch_size": 10, "head_dropout": 0.1, "epsilon": 1e-3}
WHERE = ["transformer.wte", "h.0", "h.0.mlp", "h.1.attn", "h.1", "ln_f", "model.head"]
"""Parts of a model of two blocks, from its beginning to its end."""


def fail_once(found: list[str], place: str) -> None:
    """Memory is lacking the first time that this is called."""
    if place not in found:
        found.append(place)
        raise torch.OutOfMemoryError("out of memory")


def update_twice(recipe, budget: int | None, break_in=lambda model: None) -> tuple:
    """Weights after two updates, and the budget; `break_in` is given the model before."""
    job = finetune.job.prepare_job(recipe, recipe.task.build(), start_processes("fp32", "cpu"))
    break_in(job.model)
    settings = job.settings._replace(budget=budget)
    steps = optimize(job.model, job.optimizer, [1, 2], job.forwards, settings, job.accelerator)
    budgets = [step.budget for step in steps]
    reshard(job.model)
    return gather_weights(job.model, True), budgets


def break_module(found: list[str], name: str, backwards: bool):
    """Hooks that fail in one module's forward or backward pass."""

    def hook(model: nn.Module) -> None:
        part = next(p for path, p in model.named_modules() if f"model.{path}".endswith(name))
        place = f"{name} {backwards}"
        if backwards:
            part.register_full_backward_pre_hook(lambda *_: fail_once(found, place))
        else:
            part.register_forward_pre_hook(lambda *_: fail_once(found, place))

    return hook


def break_allocation(found: list[str], at: int):
    """The room for what is gathered or reduced fails at its n-th allocation."""

    def patch(model: nn.Module) -> None:
        def fail(self, *size, **options):
            calls.append(1)
            if self.alone and len(calls) == at:
                fail_once(found, f"allocation {at}")
            return allocate(self, *size, **options)

        calls: list[int] = []
        rehearsal._Transfer.allocate = fail

    allocate = vars(rehearsal._Transfer)["allocate"]
    return patch


def break_sending(found: list[str]):
    """The way of a batch to the device fails, before the model has seen any."""

    def patch(model: nn.Module) -> None:
        def fail(batch, device):
            fail_once(found, "sending")
            return send(batch, device)

        finetune.loop.send = fail

    return patch


def fail_everywhere(kind, recipe, run, stop=None) -> int:
    """The second process lacks memory at one place after the other: the bits are as without."""
    found: list[str] = []
    allocate = rehearsal._Transfer.allocate
    ways = {
        "forwards": [break_module(found, name, False) for name in WHERE],
        "backwards": [break_module(found, name, True) for name in WHERE[1:]],
        "transfers": [
            break_sending(found),
            *(break_allocation(found, at) for at in range(1, 12)),
        ],
    }[kind]
    calm, _ = update_twice(recipe, None)
    whole = None
    second = os.environ["RANK"] == "1"
    for number, way in enumerate(ways, 1):
        weights, budgets = update_twice(recipe, None, way if second else id)
        assert len(found) == (number if second else 0), found
        rehearsal._Transfer.allocate, finetune.loop.send = allocate, send
        whole = whole or update_twice(recipe, budgets[0])[0]
        assert budgets == [budgets[0]] * 2
        assert all(torch.equal(weights[name], whole[name]) for name in whole), found
    assert any(not torch.equal(calm[name], whole[name]) for name in whole), "others were the passes"
    return 0


@pytest.mark.parametrize(
    "kind", [pytest.param("forwards", marks=pytest.mark.slow), "backwards", "transfers"]
)
def test_wherever_memory_is_lacking_the_bits_are_those_of_smaller_passes(
    kind, bases, tmp_path
) -> None:
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path / "data", **FEW)
    how = functools.partial(fail_everywhere, kind)
    assert_everywhere(2, how, recipe, tmp_path / "run", environment=SHARDS)


def read_slopes(job, batch) -> dict[str, torch.Tensor]:
    """This process's shards of one pass's gradients."""
    torch.manual_seed(0)
    objective(job.model(batch, lm=True), batch, 0.5).total.backward()
    found = {name: part.grad.to_local().clone() for name, part in job.model.named_parameters()}
    job.model.zero_grad()
    return found


def rehearse_in_vain(recipe, run, stop=None) -> int:
    """A pass that failed halfway leaves nothing behind, without a second rehearsal either."""
    job = finetune.job.prepare_job(recipe, recipe.task.build(), start_processes("fp32", "cpu"))
    batch = job.forwards(1, None).batches[0]
    before = read_slopes(job, batch)
    break_module([], "h.0.mlp", True)(job.model)
    with pytest.raises(torch.OutOfMemoryError), rehearsal.rehearse(job.model):
        read_slopes(job, batch)
    assert all(part.grad is None for part in job.model.parameters())
    after = read_slopes(job, batch)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(slope.any() for slope in after.values())
    return 0


def test_a_rehearsal_leaves_nothing_behind(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **FEW)
    assert_everywhere(2, rehearse_in_vain, recipe, tmp_path / "run", environment=SHARDS)


def look_with_little_memory(recipe, run, stop=None) -> int:
    """An evaluation whose larger passes do not fit the second process: all halve, none waits."""
    job = finetune.job.prepare_job(recipe, recipe.task.build(), start_processes("fp32", "cpu"))
    calm = job.judge(job.rounds()).scores
    forward, seen = TaskModel.forward, []
    most = int(measure(job.evaluated.examples).tokens.max())

    def watched(self, batch, lm=False):
        seen.append(tokens_read(batch))
        if os.environ["RANK"] == "1" and seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, lm)

    before = read_slopes(job, job.forwards(1, None).batches[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskModel, "forward", watched)
        assert job.judge(job.rounds()).scores == pytest.approx(calm, rel=1e-5)
    larger = [n for n, tokens in enumerate(seen) if tokens > most]
    # Halving stops with the first trial that fits both; then every pass is one of all.
    assert 0 < len(larger) == larger[-1] + 1 < len(seen) - 1
    assert job.judge(job.rounds()).scores == calm
    after = read_slopes(job, job.forwards(1, None).batches[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    return 0


def test_an_evaluation_of_shards_halves_out_of_memory(bases, tmp_path) -> None:
    """With the scores and the gradients that it has without."""
    rows = {**FEW, "held_out": 30}
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path / "data", **rows)
    assert_everywhere(2, look_with_little_memory, recipe, tmp_path / "run", environment=SHARDS)


TASK = """
    import os
    import time
    import torch
    import finetune.loop
    from finetune.model import TaskModel
    from task_formats import FORMATS, Classes, Task

    forward, step, rehearse = TaskModel.forward, torch.optim.AdamW.step, finetune.loop.rehearse
    steps, rehearsals = [], []

    def forward_or_fail(self, batch, lm=False):
        # The first pass of the fourth update that is made together.
        if self.training and len(steps) == 3 and not rehearsals and os.environ["RANK"] == "1":
            open("failed", "w").write(str(time.time()))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, lm)

    def count(self, *arguments):
        steps.append(1)
        return step(self, *arguments)

    class Rehearse:
        def __init__(self, model): self.block = rehearse(model)
        def __enter__(self): rehearsals.append(1), self.block.__enter__()
        def __exit__(self, *error): rehearsals.pop(), self.block.__exit__(*error)

    if os.environ.get("FAULT"):
        TaskModel.forward, torch.optim.AdamW.step = forward_or_fail, count
        finetune.loop.rehearse = Rehearse
    columns = {"premise": "premise", "hypothesis": "hypothesis", "label": "label"}
    labels = Classes.of(("no", "yes"))
    task = Task(FORMATS["entailment"], columns, labels)
"""


@pytest.mark.slow
def test_a_pass_that_was_proven_and_fails_ends_all_with_the_cure(bases, tmp_path) -> None:
    """Within seconds, and with the state of the update before; the cure that is told does it."""
    settings = {**FEW, "head_dropout": 0, "checkpoint_updates": 1, "evaluations": 1}
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **settings)
    one = jobs.train(recipe, tmp_path / "one")
    (tmp_path / "stories.py").write_text(textwrap.dedent(TASK))
    values = recipe.dotted(("base", "train", "data")).items()
    told = [f"{key}={json.dumps(value)}" for key, value in values if value not in (None, {})]
    sets = [word for text in told for word in ("--set", text)]

    def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["-m", "finetune", "train", "--task", "stories:task", *sets]
        return subprocess.run(
            [sys.executable, *command, "--num-processes", "2", "-o", "run", *words],
            cwd=tmp_path, env={**os.environ, **SHARDS, **environment},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    done = call(FAULT="1")
    assert done.returncode == 1, done.stderr
    seconds = time.time() - float((tmp_path / "failed").read_text())
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert errors == ["error: process 1: out of memory"], done.stderr
    cure = re.findall(r"(--resume) (--set) (train.tokens_per_forward=\d+)", done.stderr)
    assert len(cure) == 1
    assert seconds < 10
    state, warnings = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (3, [])
    again = call(*cure[0])
    assert again.returncode == 0, again.stderr
    assert jobs.distance(jobs.weights(one), jobs.weights(tmp_path / "run")) < 1e-5
