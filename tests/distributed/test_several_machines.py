"""What docs/several_machines.md says, run as it stands there, on one machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from finetune.distributed.fsdp import fsdp_requested
from tests.support import jobs
from tests.support.processes import ODD, SHARDS, free_port

SRUN = """#!/bin/bash
# One task per machine, two machines, all of them here.
shift
children=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & children+=($!)
done
echo "${children[@]}" > tasks
code=0
for child in "${children[@]}"; do wait "$child" || code=$?; done
exit "$code"
"""

SCONTROL = """#!/bin/bash
case $1 in
    show) echo localhost; echo localhost;;
    requeue) echo "$2" >> requeued;;
esac
"""


def write_job(bases, folder: Path, **settings) -> tuple[Path, Path]:
    """The recipe of a small job as a file, and the run of one process to compare with."""
    recipe = jobs.recipe("entailment", bases("gpt2"), folder / "data", **{**ODD, **settings})
    path = folder / "mine.yaml"
    path.write_text(recipe.to_yaml())
    return path, jobs.train(recipe, folder / "one")


def script(root: Path, recipe: Path) -> str:
    """The one of the page, about our recipe."""
    page = (root / "docs" / "several_machines.md").read_text()
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    changed = text.replace("--task rte --base gpt2 -o runs/rte", f"--task {recipe} -o two")
    changed = changed.replace("gptft train", f"{sys.executable} -m finetune train")
    assert changed.count(str(recipe)) == 1
    return changed.replace("29500", str(free_port()))


@pytest.mark.slow
def test_the_slurm_script_goes_back_into_the_queue_and_on(root, bases, tmp_path) -> None:
    recipe, one = write_job(bases, tmp_path, epochs=60, evaluations=1)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("job", script(root, recipe))):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "7", "NTASKS": "2", "NTASKS_PER_NODE": "1", "CPUS_PER_TASK": "1"}
    environment = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        "SLURM_JOB_NODELIST": "localhost",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
    }

    def submit() -> subprocess.Popen:
        return subprocess.Popen([tmp_path / "job"], cwd=tmp_path, env=environment)

    job, log = submit(), tmp_path / "two" / "metrics.jsonl"
    while not log.exists() or log.stat().st_size < 1000:
        assert job.poll() is None
        time.sleep(0.02)
    # Slurm tells every task.
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    assert job.wait() == 143
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert not (tmp_path / "two" / "result.json").exists()
    assert submit().wait() == 0
    assert jobs.distance(jobs.weights(one), jobs.weights(tmp_path / "two")) < 1e-4
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(tmp_path / "two"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_two_machines_of_torchrun(shards, bases, tmp_path) -> None:
    recipe, one = write_job(bases, tmp_path)
    where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--node-rank", str(rank), "--nproc-per-node", "1", *where),
                *("-m", "finetune", "train", "--task", str(recipe), "-o", "two"),
            ],
            cwd=tmp_path,
            env={**os.environ, **(SHARDS if shards else {})},
        )
        for rank in range(2)
    ]
    assert [machine.wait() for machine in machines] == [0, 0]
    assert jobs.distance(jobs.weights(one), jobs.weights(tmp_path / "two")) < 1e-5
    alone, together = (jobs.result(tmp_path / run)["scores"]["evaluate"] for run in ("one", "two"))
    assert alone == pytest.approx(together, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*FSDP2:UserWarning")
def test_accelerate_sets_the_variables_that_are_read(monkeypatch) -> None:
    words = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "train.py"]
    arguments = launch_command_parser().parse_args(words)
    arguments.num_machines, arguments.mixed_precision, arguments.dynamo_backend = 1, "no", "no"
    environment = prepare_multi_gpu_env(arguments)
    assert {name: environment.get(name) for name in SHARDS} == SHARDS
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"
    assert environment["FSDP_ACTIVATION_CHECKPOINTING"] == "false"
    for name in (name for name in environment if name.startswith(("FSDP_", "ACCELERATE_"))):
        monkeypatch.setenv(name, environment[name])
    assert fsdp_requested()
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert not plugin.cpu_ram_efficient_loading
