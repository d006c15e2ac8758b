"""Precision and device belong to a run, not to the Python process."""

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import finetune
from finetune.distributed import hardware, setup
from finetune.distributed.setup import choose_batch_config, choose_precision, create_accelerator
from finetune.models.heads import LinearHead
from finetune.models.pretrained import load_decoder
from finetune.recipe.schema import BaseConfig
from finetune.training.events import Started
from finetune.training.finetuning import events
from task_formats import UsageError
from tests.support import jobs


def product(accelerator) -> torch.dtype:
    with accelerator.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_every_accelerator_keeps_its_precision() -> None:
    wide, narrow = create_accelerator("fp32"), create_accelerator("bf16")
    assert (wide.mixed_precision, narrow.mixed_precision) == ("no", "bf16")
    dtypes = [product(accelerator) for accelerator in (wide, narrow, wide)]
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]


def test_runs_of_both_precisions_follow_each_other(bases, tmp_path) -> None:
    recipe = jobs.recipe("similarity", bases("gpt2"), tmp_path / "data")
    predictors, started = {}, []
    for precision in ("fp32", "bf16", "fp32"):
        run = tmp_path / f"{precision}-{len(started)}"
        stream = events(jobs.change(recipe, "train", precision=precision), run)
        started += [event.precision for event in stream if isinstance(event, Started)]
        predictors[run] = finetune.load(run)
    assert started == ["fp32", "bf16", "fp32"]
    for run, predictor in predictors.items():
        assert predictor.evaluate() == jobs.result(run)["scores"]["evaluate"]
    first, narrow, last = predictors
    assert jobs.distance(jobs.weights(first), jobs.weights(last)) == 0
    # Coarser numbers, and not too coarse; weights are kept in full.
    assert 1e-6 < jobs.distance(jobs.weights(first), jobs.weights(narrow)) < 1e-2
    assert {tensor.dtype for tensor in jobs.weights(narrow).values()} == {torch.float32}


def test_the_head_computes_in_float32() -> None:
    head = LinearHead(8, 3, is_multiple_choice=False).eval()
    features, present = torch.randn(2, 1, 8), torch.ones(2, 1, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        dtypes = head(features.bfloat16(), present)
    assert dtypes.dtype == torch.float32
    torch.testing.assert_close(dtypes, head(features.bfloat16(), present), rtol=0, atol=0)


def test_an_accelerator_keeps_its_device(monkeypatch) -> None:
    old = create_accelerator("fp32", "cpu")
    # As if it had been a GPU.
    shared = {**AcceleratorState._shared_state, "device": torch.device("cuda")}
    monkeypatch.setattr(AcceleratorState, "_shared_state", shared)
    old.state.__dict__ = shared
    new = create_accelerator("fp32", "cpu")
    assert (old.device.type, new.device.type) == ("cuda", "cpu")


def test_a_run_may_follow_one_of_another_trainer_in_bf16(monkeypatch) -> None:
    for state in (AcceleratorState, PartialState):
        monkeypatch.setattr(state, "_shared_state", {})
    other = Accelerator(mixed_precision="bf16", cpu=True)
    assert create_accelerator("fp32", "cpu").mixed_precision == "no"
    assert other.mixed_precision == "bf16"


@pytest.fixture
def two_gpus(monkeypatch) -> None:
    """Simulates a machine with two GPUs."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    for state in (AcceleratorState, PartialState):
        monkeypatch.setattr(state, "_shared_state", {})


@pytest.mark.usefixtures("two_gpus")
def test_the_device_is_the_one_that_was_named() -> None:
    names = ("cuda:1", "cuda:0", "cuda:1", "cuda", None, "cpu", "cuda:1")
    accelerators = [create_accelerator("fp32", name) for name in names]
    expected = ["cuda:1", "cuda:0", "cuda:1", "cuda", "cuda", "cpu", "cuda:1"]
    # Each keeps its own, whatever was chosen after it.
    assert [str(accelerator.device) for accelerator in accelerators] == expected


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "gpu", "mps", "cuda:x", ""])
def test_an_unknown_device_is_refused(name) -> None:
    with pytest.raises(UsageError, match=f"no device '{name}'") as caught:
        create_accelerator("fp32", name)
    assert caught.value.cure == "Omit the device, or use cuda or cuda:0 or cuda:1 or cpu."


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_devices_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 3 of this machine finds only 2 device"):
        create_accelerator("fp32")


def switches() -> tuple[object, ...]:
    cuda = torch.backends.cuda
    return (
        torch.are_deterministic_algorithms_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_deterministic_run_is_the_same_twice(device: str, bases, tmp_path, monkeypatch) -> None:
    """Nothing of ours lacks a deterministic kernel, and what was switched is switched back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path / "data", head_dropout=0.1)
    exact, before = jobs.change(recipe, "train", deterministic=True), switches()
    during = set()
    for name in ("one", "two"):
        for _ in events(exact, tmp_path / name, device=device):
            during.add(switches())
    assert during == {(True, False, False, False)}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == before
    jobs.assert_same(tmp_path / "one", tmp_path / "two")


def test_the_precision_of_a_recipe_is_used() -> None:
    assert [choose_precision(asked) for asked in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert choose_precision("auto") in ("fp32", "bf16")


def test_a_training_pass_is_larger_where_memory_allows_it(bases, monkeypatch) -> None:
    decoder = load_decoder(BaseConfig(path=str(bases("gpt2")))).decoder

    def limit(device: str = "cpu", **options) -> int:
        accelerator = SimpleNamespace(device=torch.device(device), num_processes=1)
        return choose_batch_config(decoder, accelerator, 0, **options).max_tokens_per_forward

    predicted, limits = limit(), []
    for memory in (None, 2**10, 2**30, 2**35, 2**50):
        monkeypatch.setattr(setup, "total_memory", lambda memory=memory: memory)
        assert limit() == predicted
        assert limit("cuda", training=True) == limit("cuda")
        assert limit(training=True, max_tokens=7) == 7
        limits.append(limit(training=True))
    assert limits == sorted(limits)
    assert limits[:2] == [predicted, predicted]
    assert limits[-1] == 4 * predicted


def test_processes_of_a_machine_share_its_memory(bases, monkeypatch) -> None:
    decoder = load_decoder(BaseConfig(path=str(bases("gpt2")))).decoder

    def limit(memory: int, processes: int) -> int:
        monkeypatch.setattr(setup, "total_memory", lambda: memory)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        accelerator = create_accelerator("fp32", "cpu")
        return choose_batch_config(decoder, accelerator, 0, training=True).max_tokens_per_forward

    width = decoder.config.num_hidden_layers * decoder.config.hidden_size
    memory = 4 * 80 * width * 10_000
    assert limit(memory, 1) == 10_000
    assert limit(4 * memory, 4) == 10_000
    assert limit(memory, 4) == 8192, "as without training"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/slurm/job_7\n", {"slurm/job_7/memory.max": "max", "slurm/memory.max": "4096"}, 4096),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:memory:/a\n0::/\n", {"memory/memory.limit_in_bytes": "4096\n"}, 4096),
        ("4:cpu:/a\n", {"memory.max": "4096\n", "cpu/memory.max": "4096\n"}, None),
        (None, {}, None),
    ],
)
def test_the_limit_of_a_container_counts_as_the_memory(
    own, limits, expected, tmp_path, monkeypatch
) -> None:
    """Of control groups of version 2 and 1, of this one or of one above it."""
    for name, content in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "_OWN_CGROUPS", tmp_path / "own")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert hardware.total_memory() == (expected or machine)
