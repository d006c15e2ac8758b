"""One command that measures gptft on a GPU: writes gpu.json and gpu.md.

    python -m benchmarks.gpu -o FOLDER [--data FOLDER] [--only PART ...] [--seconds 240]

Models have random weights, so nothing is downloaded. The results are written after each part; a
part that fails or takes too long is recorded with its traceback, and the others go on. --rehearse
runs everything with tiny shapes on a CPU, to see that it runs; its numbers mean nothing.
"""

import argparse
import gc
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import inputs, peers
from benchmarks.gptft import BATCH, WIDTH
from benchmarks.harness import ROOT, Scale
from finetune.batching.collate import Batch, Layout, collate, count_totals, to_device
from finetune.batching.sampler import batch_by_tokens
from finetune.checkpointing.checkpoint import (
    CheckpointWriter,
    capture_state,
    load_latest_checkpoint,
)
from finetune.data.token_store import compute_lengths
from finetune.distributed.setup import RunAccelerator, choose_batch_config, create_accelerator
from finetune.models.attention import interface
from finetune.models.attention.masks import AttentionLayout
from finetune.models.heads import LinearHead
from finetune.models.pretrained import find_base
from finetune.models.speedups.compilation import compile_blocks
from finetune.models.speedups.last_token import enable_last_token_shortcut
from finetune.models.speedups.optimize import replace_modules
from finetune.models.task_model import TaskModel
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import TrainConfig
from finetune.training.finetuning import events
from finetune.training.loop import LoopSettings, MicroBatches, Step, run_updates
from finetune.training.optimizer import build_optimizer
from task_formats import Encoded

Row = dict[str, Any]
"""One row of a table: column to value."""
LONG_WARM = 3
"""Updates of the llama shape that are not timed."""
PACKAGES = ("torch", "triton", "transformers", "accelerate", "tokenizers", "datasets", "pydantic")


class Sizes(NamedTuple):
    """How large everything is."""

    small: dict[str, int]
    """gpt2-small, as changes of transformers' default."""
    llama: dict[str, int]
    sequences: tuple[tuple[int, int], ...]
    """For the llama shape: tokens of a sequence, sequences of an update."""
    warm: int
    """Updates on RTE that are not timed: memory is allocated, kernels are chosen."""
    updates: int
    """Timed updates on RTE."""
    long_updates: int
    """Timed updates of the llama shape."""
    product: int
    """Rows and columns of the measured matrix product."""
    repeats: int


FULL = Sizes(
    small={},
    llama={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32_768},
    sequences=((512, 32), (2048, 8)), warm=8, updates=40, long_updates=8,
    product=8192, repeats=20,
)  # fmt: skip
REHEARSAL = Sizes(
    small={"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 9000, "resid_pdrop": 0,
           "embd_pdrop": 0},
    llama={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    sequences=((16, 4), (32, 2)), warm=1, updates=2, long_updates=1,
    product=64, repeats=2,
)  # fmt: skip


class Context(NamedTuple):
    """What the parts share."""

    device: torch.device
    sizes: Sizes
    scale: Scale
    """Its `material` has the base of gpt2-small's shape, its `data` RTE."""
    results: dict[str, Any]
    """Of the parts so far, by name."""

    @property
    def peak_rate(self) -> float | None:
        """FLOP/s of the matrix product that was measured."""
        card = self.results.get("card", {}).get("result")
        return card[0]["bf16 TFLOP/s"] * 1e12 if card else None


# Time and memory.


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that some work takes, until the device has done it."""
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over repeats, after two that are not counted."""
    for _ in range(2):
        work()
    return float(np.median([seconds_of(work) for _ in range(repeats)]))


def free_memory() -> None:
    """Returns unused memory to the device and starts a new peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Highest memory of tensors on the GPU since `free_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def forget_accelerator() -> None:
    """Lets the next run, ours or Trainer's, choose its own precision."""
    # New dictionaries, because existing accelerators hold the old ones.
    AcceleratorState._shared_state, PartialState._shared_state = {}, {}
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


class Timed(NamedTuple):
    """What the timed updates of a run took."""

    seconds: float
    updates: int
    examples: int
    tokens: int
    """Without padding."""


def time_steps(steps: Iterator[Step], warm: int, updates: int) -> Timed:
    """Times updates after `warm` others."""
    for _ in islice(steps, warm):
        pass
    done: list[Step] = []
    seconds = seconds_of(lambda: done.extend(islice(steps, updates)))
    return Timed(seconds, len(done), sum(s.examples for s in done), sum(s.tokens for s in done))


def training_flops(config: PreTrainedConfig, timed: Timed, *, lm: bool, every_state: bool) -> float:
    """FLOPs that the timed updates need: products with weights, and causal attention.

    Args:
        config: Of a gpt2 or llama.
        timed: Its tokens and examples.
        lm: The LM loss is computed: products with the output layer.
        every_state: The last block is computed for all tokens, not only keys and values.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    keys_values = 2 * width * width * groups // heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    products = 3 if config.model_type == "llama" else 2
    others = 2 * width * width + products * width * inner
    blocks = config.num_hidden_layers - (0 if every_state else 1)
    weights = blocks * (keys_values + others) * timed.tokens
    if not every_state:
        weights += keys_values * timed.tokens + others * timed.examples
    if lm:
        weights += config.vocab_size * width * (timed.tokens - timed.examples)
    # Scores and weighted sums, each with half the mean length per token.
    attention = blocks * width * timed.tokens * timed.tokens / timed.examples
    return 6.0 * weights + 6.0 * attention


def row_of(
    context: Context, arm: str, timed: Timed, config: PreTrainedConfig, *, lm: bool, own: bool
) -> Row:
    """The row of a training arm. `own` says that the last block computes only what is read."""
    flops = training_flops(config, timed, lm=lm, every_state=lm or not own)
    rate, peak = flops / timed.seconds, context.peak_rate
    return {
        "arm": arm,
        "examples/s": timed.examples / timed.seconds,
        "tokens/s": timed.tokens / timed.seconds,
        "ms per update": 1e3 * timed.seconds / timed.updates,
        "TFLOP/s": rate / 1e12,
        "MFU": rate / peak if peak else None,
        "peak GiB": peak_gib(),
    }


# Part: the card.


def measure_card(context: Context) -> Iterator[Row]:
    """The rate of a bf16 matrix product and the bandwidth of a copy."""
    size, device = context.sizes.product, context.device
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = median_seconds(lambda: left @ right, context.sizes.repeats)
    source = torch.randn(size * size * 4, device=device)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), context.sizes.repeats)
    host = torch.empty(source.shape, pin_memory=device.type == "cuda")
    to_host = median_seconds(lambda: host.copy_(source), 3)
    yield {
        "product": f"{size} × {size} × {size}",
        "bf16 TFLOP/s": 2 * size**3 / product / 1e12,
        "copy GB/s, read and written": 2 * source.nbytes / copy / 1e9,
        "copy to pinned memory GB/s": source.nbytes / to_host / 1e9,
    }


# Part: RTE.


def prepare_material(context: Context, given: Path | None) -> None:
    """Writes the base of gpt2-small's shape, with the shipped tokenizer, and RTE's rows."""
    folder, data = context.scale.material / "small", context.scale.data / "glue" / "RTE"
    torch.manual_seed(0)
    config = GPT2Config(loss_type="ForCausalLM", **context.sizes.small)
    with torch.device(context.device):
        GPT2LMHeadModel(config).save_pretrained(folder)
    shipped = Path(find_base("tiny"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (shipped / name).exists():
            shutil.copy(shipped / name, folder / name)
    data.mkdir(parents=True)
    if given is not None:
        source = given if (given / "train.tsv").exists() else given / "glue" / "RTE"
        shutil.copy(source / "train.tsv", data / "train.tsv")
    else:
        (data / "train.tsv").write_text("".join(_random_pairs(2490)), encoding="utf-8")


def _random_pairs(count: int) -> Iterator[str]:
    """Lines of a file like RTE's, with words of the alphabet."""
    generator = np.random.Generator(np.random.PCG64(0))
    words = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    yield "index\tsentence1\tsentence2\tlabel\n"
    for index in range(count):
        sizes = np.clip(np.exp(generator.normal((3.6, 2.1), (0.5, 0.3))), 4, 120).astype(int)
        first, second = (" ".join(generator.choice(words, size)) for size in sizes)
        yield f"{index}\t{first}\t{second}\t{('entailment', 'not_entailment')[index % 2]}\n"


def rte_steps(context: Context, **train: Any) -> Iterator[Step]:
    """Updates on RTE as `gptft train` makes them; closing the iterator ends the run."""
    settings = {
        "lm_coefficient": 0, "precision": "bf16", "max_tokens": WIDTH, "batch_size": BATCH,
        "epochs": 3, "checkpoint_minutes": None, **train,
    }  # fmt: skip
    recipe = load_recipe(
        "rte",
        {
            "base.path": str(inputs.base(context.scale)),
            "data.path": str(context.scale.data / "glue"),
            "data.evaluate": None,
            **{f"train.{name}": value for name, value in settings.items()},
        },
    )
    forget_accelerator()
    with tempfile.TemporaryDirectory() as folder:
        running = events(recipe, Path(folder) / "run", device=context.device.type)
        try:
            yield from (event for event in running if isinstance(event, Step))
        finally:
            running.close()


def time_rte(context: Context, arm: str, **train: Any) -> Row:
    """Times gptft on RTE."""
    free_memory()
    steps = rte_steps(context, **train)
    timed = time_steps(steps, context.sizes.warm, context.sizes.updates)
    config = GPT2Config(**context.sizes.small)
    row = row_of(context, arm, timed, config, lm=train.get("lm_coefficient", 0) > 0, own=True)
    steps.close()
    return row


class Stopwatch(TrainerCallback):
    """Times the updates of Trainer after the warm-up, and then ends training."""

    def __init__(self, warm: int, updates: int) -> None:
        self.warm, self.updates, self.seconds = warm, updates, 0.0
        self._begun = 0.0

    def on_step_end(self, _: object, state: Any, control: Any, **__: object) -> None:
        """Counts an update."""
        if state.global_step == self.warm:
            synchronize()
            self._begun = time.perf_counter()
        elif state.global_step == self.warm + self.updates:
            synchronize()
            self.seconds = time.perf_counter() - self._begun
            control.should_training_stop = True


def time_trainer(
    context: Context, model: nn.Module, rows: list[Row], warm: int, updates: int, passes: int = 1
) -> Timed:
    """Times Trainer in bf16 with defaults; `rows` are the examples of all updates."""
    batch = len(rows) // (updates + warm)
    forget_accelerator()
    free_memory()
    watch = Stopwatch(warm, updates)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, use_cpu=context.device.type == "cpu", bf16=True, disable_tqdm=True,
            report_to=[], save_strategy="no", logging_strategy="no",
            per_device_train_batch_size=batch // passes, gradient_accumulation_steps=passes,
            max_steps=warm + updates,
        )  # fmt: skip
        collator = peers.DataCollatorWithPadding(peers.tokenizer(context.scale))
        Trainer(
            model, arguments, train_dataset=rows, data_collator=collator, callbacks=[watch]
        ).train()
    # Trainer shuffles, so tokens are those of an average update.
    tokens = sum(sum(row["attention_mask"]) for row in rows) / len(rows)
    return Timed(watch.seconds, updates, updates * batch, round(tokens * updates * batch))


def time_run_glue(context: Context, arm: str, *, padded: bool, lm: bool) -> Row:
    """Times RTE as run_glue does it, or with a direct implementation of the LM loss."""
    sizes = context.sizes
    model = peers.NaiveModel(context.scale) if lm else peers.classifier(context.scale)
    count = BATCH * (sizes.warm + sizes.updates)
    rows = peers.pairs(context.scale, "train", count, padded=padded)
    timed = time_trainer(context, model, rows, sizes.warm, sizes.updates)
    return row_of(context, arm, timed, GPT2Config(**sizes.small), lm=lm, own=False)


def measure_rte(context: Context) -> Iterator[Row]:
    """gpt2-small on RTE, 32 examples an update, bf16, at most 128 tokens."""
    yield time_rte(context, "gptft, packed")
    yield time_run_glue(context, "run_glue, padded to 128", padded=True, lm=False)
    yield time_rte(context, "gptft, padded rows", layout="separate")
    yield time_run_glue(context, "run_glue, dynamic padding", padded=False, lm=False)
    with _rectangles():
        yield time_rte(context, "gptft, packed, attention in rectangles")
    yield time_rte(context, "gptft, packed, λ = 0.5", lm_coefficient=0.5)
    yield time_run_glue(context, "all logits, padded to 128, λ = 0.5", padded=True, lm=True)


def measure_rte_compiled(context: Context) -> Iterator[Row]:
    """The same with --compile; the compilation is part of the warm-up."""
    begun = time.perf_counter()
    row = time_rte(context, "gptft, packed, --compile", compile=True)
    yield {**row, "seconds in all": time.perf_counter() - begun}


# Part: a llama of a billion parameters.


def llama_config(context: Context) -> LlamaConfig:
    """The shape, with tied embeddings; no dropout."""
    return LlamaConfig(
        **context.sizes.llama, max_position_embeddings=4096, tie_word_embeddings=True,
        pad_token_id=0, use_cache=False, num_labels=2,
    )  # fmt: skip


def build_llama(context: Context) -> TaskModel:
    """The decoder with random weights and our speed-ups, made on the device."""
    torch.manual_seed(0)
    with torch.device(context.device):
        decoder: PreTrainedModel = LlamaForCausalLM(llama_config(context))
        head = LinearHead(decoder.config.hidden_size, 2, is_multiple_choice=False, dropout=0)
    # As optimize_decoder does, without its check, which computes on a CPU.
    replace_modules(decoder)
    decoder.set_attn_implementation(interface.ATTENTION_NAME)
    enable_last_token_shortcut(decoder)
    return TaskModel(decoder, head)


def random_examples(length: int, count: int, vocabulary: int) -> list[Encoded]:
    """Examples of one view with `length` random tokens."""
    ids = np.random.Generator(np.random.PCG64(0)).integers(1, vocabulary, (count, length))
    return [
        Encoded(str(n), row[: length // 2].tolist(), (row[length // 2 :].tolist(),), n % 2)
        for n, row in enumerate(ids)
    ]


def llama_steps(
    context: Context,
    model: TaskModel,
    optimizer: torch.optim.AdamW,
    shape: tuple[int, int],
    *,
    lm_coefficient: float,
    layout: Layout = "packed",
) -> Iterator[Step]:
    """Endless updates of gptft's training loop on random tokens."""
    length, count = shape
    examples = random_examples(length, 4 * count, model.backbone.decoder.config.vocab_size)
    lengths = compute_lengths(examples)
    config = choose_batch_config(model.backbone.decoder, context.device, 0, layout=layout)

    def make_microbatches(update: int, max_tokens: int | None) -> MicroBatches:
        rows = np.arange(update * count, (update + 1) * count) % len(examples)
        totals = count_totals([examples[n] for n in rows])
        limit = max_tokens or config.max_tokens_per_forward
        batches = [
            collate([examples[n] for n in part], layout, 0, totals)
            for part in batch_by_tokens(rows, lengths, layout, limit)
        ]
        return MicroBatches(batches, count, length * count)

    forget_accelerator()
    accelerator: RunAccelerator = create_accelerator("bf16", context.device.type)
    settings = LoopSettings(lambda update: 1e-5, lm_coefficient=lm_coefficient)
    updates = iter(range(1, 10**6))
    return run_updates(model, optimizer, updates, make_microbatches, settings, accelerator)


def time_llama(
    context: Context,
    arm: str,
    model: TaskModel,
    optimizer: torch.optim.AdamW,
    shape: tuple[int, int],
    **options: Any,
) -> Row:
    """Times our loop with the llama shape."""
    free_memory()
    steps = llama_steps(context, model, optimizer, shape, **options)
    timed = time_steps(steps, LONG_WARM, context.sizes.long_updates)
    config, lm = model.backbone.decoder.config, options["lm_coefficient"] > 0
    return row_of(context, f"{arm}, {shape[0]} tokens", timed, config, lm=lm, own=True)


def measure_llama(context: Context) -> Iterator[Row]:
    """Sequences of equal length; Trainer and gptft cut an update into as many forward passes."""
    model = build_llama(context)
    optimizer = build_optimizer(model.parameters(), TrainConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    for shape in context.sizes.sequences:
        for coefficient in (0, 0.5):
            arm = f"gptft, packed, λ = {coefficient}"
            row = time_llama(context, arm, model, optimizer, shape, lm_coefficient=coefficient)
            yield {**row, "parameters": count}
    del model, optimizer
    for length, count in context.sizes.sequences:
        yield time_llama_trainer(context, length, count)


def time_llama_trainer(context: Context, length: int, count: int) -> Row:
    """Times Trainer with the llama shape; two forward passes an update."""
    config = llama_config(context)
    with torch.device(context.device):
        model = LlamaForSequenceClassification(config)
    updates = context.sizes.long_updates
    examples = random_examples(length, count * (updates + LONG_WARM), config.vocab_size)
    rows = [
        {
            "input_ids": [*example.prefix, *example.endings[0]],
            "attention_mask": [1] * length,
            "labels": example.label,
        }
        for example in examples
    ]
    timed = time_trainer(context, model, rows, LONG_WARM, updates, passes=2)
    return row_of(context, f"run_glue way, {length} tokens", timed, config, lm=False, own=False)


def measure_llama_compiled(context: Context) -> Iterator[Row]:
    """The llama shape with --compile, λ = 0."""
    model = build_llama(context)
    compile_blocks(model.backbone.decoder)
    optimizer = build_optimizer(model.parameters(), TrainConfig())
    shape, begun = context.sizes.sequences[0], time.perf_counter()
    arm = "gptft, packed, λ = 0, --compile"
    row = time_llama(context, arm, model, optimizer, shape, lm_coefficient=0)
    yield {**row, "seconds in all": time.perf_counter() - begun}


# Part: attention alone.


def measure_attention(context: Context) -> Iterator[Row]:
    """Attention of packed rows, forward and backward of one layer, in ways that a GPU offers."""
    generator = np.random.Generator(np.random.PCG64(0))
    short = np.clip(np.exp(generator.normal(4.1, 0.4, 32)), 20, 128).astype(int).tolist()
    shapes = {"32 of 20 to 128 tokens, 12 heads": (short, 12, 12)}
    for length, count in context.sizes.sequences:
        shapes[f"{count} of {length}, 32 heads, 8 for keys"] = ([length] * count, 32, 8)
    for (name, (lengths, heads, groups)), dropout in (
        (shape, dropout) for shape in shapes.items() for dropout in (0.0, 0.1)
    ):
        examples = [Encoded(str(n), [1] * (size - 1), ([1],), 0) for n, size in enumerate(lengths)]
        batch = to_device(collate(examples, "packed"), context.device)
        yield {
            "sequences": name,
            "dropout": dropout,
            **_time_attention(context, batch, heads, groups, dropout),
        }


def _time_attention(context: Context, batch: Batch, heads: int, groups: int, dropout: float) -> Row:
    """Milliseconds of every way, and the largest difference of its output from float32."""
    tokens, width = batch.tokens.shape[1], 64
    dtype = torch.bfloat16
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, count, tokens, width, device=context.device, dtype=dtype)
        .transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for count in (heads, groups, groups)
    )  # fmt: skip
    row: Row = {}
    layout = AttentionLayout(batch)
    exact = interface.packed_attention(
        nn.Module(), *(x.detach().float() for x in (q, k, v)), None, attention_layout=layout
    )[0]
    for name, switch in ATTENTION_WAYS.items():

        def forward(dropout: float = dropout) -> Tensor:
            return interface.packed_attention(
                nn.Module(), q, k, v, None, attention_layout=layout, dropout=dropout
            )[0]

        def both() -> None:
            for x in (q, k, v):
                x.grad = None
            forward().sum().backward()

        with switch():
            with torch.no_grad():
                error = (forward(0.0).float() - exact).norm() / exact.norm()
            row[f"{name}, ms"] = 1e3 * median_seconds(both, context.sizes.repeats)
            row[f"{name}, error"] = float(error)
    return row


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _patched(owner: object, name: str, value: object) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _rectangles() -> Any:
    return _patched(interface, "supports_varlen", lambda query, value: False)


@contextmanager
def _by_text() -> Iterator[None]:
    with _rectangles(), _patched(interface, "prefers_padded_groups", lambda device: False):
        yield


ATTENTION_WAYS: dict[str, Callable[[], Any]] = {
    "default": _as_it_is,
    "padded rectangles": _rectangles,
    "one kernel a text": _by_text,
}
"""By default a GPU computes all texts in one FlashAttention kernel."""


# Part: what an update waits for.


def measure_update(context: Context) -> Iterator[Row]:
    """Kernels of one update on RTE, and lines at which the host waits for the device."""
    for arm, train in (("packed", {}), ("packed, λ = 0.5", {"lm_coefficient": 0.5})):
        steps = rte_steps(context, **train)
        for _ in islice(steps, context.sizes.warm):
            pass
        waits = _find_waits(steps)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in islice(steps, 2):
                pass
            synchronize()
        counts: dict[str, float] = {}
        kernels: dict[str, float] = {}
        for item in profile.key_averages():
            counts[item.key] = item.count / 2
            is_cpu = item.device_type == torch.autograd.DeviceType.CPU
            if not (is_cpu or item.is_user_annotation):
                kernels[item.key] = item.self_device_time_total / 2e3
        longest = sorted(kernels, key=lambda name: -kernels[name])[:12]
        yield {
            "arm": arm,
            "kernels per update": sum(v for name, v in counts.items() if "LaunchKernel" in name),
            "device ms per update": sum(kernels.values()),
            "waits per update": counts.get("cudaStreamSynchronize", 0),
            "copies per update": counts.get("cudaMemcpyAsync", 0),
            "waits at": waits,
            "longest kernels, ms": {name[:70]: round(kernels[name], 3) for name in longest},
        }
        steps.close()


def _find_waits(steps: Iterator[Step]) -> list[str]:
    """Source lines at which one update makes the host wait."""
    if not torch.cuda.is_available():
        next(steps)
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in found if "synchroniz" in str(warning.message)]
    places = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in found]
    return [f"{place} × {places.count(place)}" for place in sorted(set(places))]


def measure_copies(context: Context) -> Iterator[Row]:
    """Copies of a batch to the GPU from pinned and from pageable memory, while it is busy."""
    examples = random_examples(64, BATCH, 1000)
    batch = collate(examples, "packed")
    size = context.sizes.product // 2
    matrix = torch.randn(size, size, device=context.device)

    def host_ms(copy: Callable[[], object]) -> float:
        took = []
        for _ in range(context.sizes.repeats):
            synchronize()
            matrix @ matrix
            begun = time.perf_counter()
            copy()
            took.append(time.perf_counter() - begun)
        return 1e3 * float(np.median(took))

    def pageable() -> None:
        for value in batch:
            if isinstance(value, Tensor):
                value.to(context.device)

    yield {
        "batch": f"{BATCH} of 64 tokens",
        "pinned, ms of the host": host_ms(lambda: to_device(batch, context.device)),
        "pageable, ms of the host": host_ms(pageable),
    }


# Parts: determinism, checkpoints, tests.


def measure_determinism(context: Context) -> Iterator[Row]:
    """Two short trainings with --deterministic, and two without, by the bits of their losses."""
    for deterministic in (True, False):
        runs = []
        for _ in range(2):
            options = {"deterministic": deterministic, "lm_coefficient": 0.5}
            steps = rte_steps(context, **options)
            done = list(islice(steps, max(context.sizes.warm, 2)))
            steps.close()
            runs.append([(s.losses.total.item(), s.grad_norm.item()) for s in done])
        yield {
            "deterministic": deterministic,
            "updates": len(runs[0]),
            "same bits": runs[0] == runs[1],
            "last losses": [run[-1][0] for run in runs],
        }


def measure_checkpoint(context: Context) -> Iterator[Row]:
    """What saving gpt2-small with its moments costs."""
    torch.manual_seed(0)
    with torch.device(context.device):
        model = GPT2LMHeadModel(GPT2Config(loss_type="ForCausalLM", **context.sizes.small))
        tokens = torch.randint(1000, (BATCH, 64))
    optimizer = build_optimizer(model.parameters(), TrainConfig())

    def update() -> None:
        with torch.autocast(context.device.type, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    alone = median_seconds(update, 5)
    state = capture_state(model, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder))
        first = seconds_of(lambda: writer.save(1, capture_state(model, optimizer), {}))
        writer.wait()
        copied = seconds_of(lambda: writer.save(2, capture_state(model, optimizer), {}))
        begun, beside = time.perf_counter(), []
        while writer._thread and writer._thread.is_alive():
            beside.append(seconds_of(update))
        written = time.perf_counter() - begun
        writer.wait()
        read = seconds_of(lambda: load_latest_checkpoint(Path(folder)))
    delay = sum(beside) - len(beside) * alone
    yield {
        "GB": sum(tensor.nbytes for tensor in state.values()) / 1e9,
        "first copy, s": first,
        "copy, s": copied,
        "written beside training, s": written,
        "training delayed by that, s": delay,
        "cost of a save a minute": (copied + delay) / 60,
        "checked and read, s": read,
    }


def run_gpu_tests(context: Context) -> Iterator[Row]:
    """Pytest -m gpu, on the files that have such tests."""
    marked = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(path.relative_to(ROOT)) for path in marked)],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    yield {
        "files": len(marked),
        "exit code": done.returncode,
        "summary": lines[-1],
        "output": done.stdout[-4000:] if done.returncode else "",
    }


class Part(NamedTuple):
    """A part of the benchmark."""

    measure: Callable[[Context], Iterable[Row]]
    title: str
    limit: int
    """Seconds."""


PARTS = {
    "card": Part(measure_card, "The card", 20),
    "update": Part(measure_update, "An update on RTE, profiled", 30),
    "rte": Part(measure_rte, "gpt2-small on RTE, bf16, 32 examples an update", 75),
    "llama": Part(measure_llama, "A llama of 1.0 billion parameters, bf16", 60),
    "attention": Part(measure_attention, "Attention, forward and backward of one layer", 25),
    "deterministic": Part(measure_determinism, "--deterministic", 30),
    "copies": Part(measure_copies, "Copies of a batch to the GPU", 10),
    "checkpoint": Part(measure_checkpoint, "A checkpoint of gpt2-small with AdamW", 25),
    "llama-compiled": Part(measure_llama_compiled, "The llama with --compile", 60),
    "rte-compiled": Part(measure_rte_compiled, "RTE with --compile", 60),
    "tests": Part(run_gpu_tests, "Tests that need a GPU", 70),
}


# Running the parts and writing the results.


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block when its time is over."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def run_part(part: Part, context: Context) -> dict[str, Any]:
    """The rows of a part, as far as it came, its seconds and perhaps its error."""
    begun = time.perf_counter()
    rows: list[Row] = []
    outcome: dict[str, Any] = {"title": part.title, "result": rows}
    try:
        # Rehearsals may share a slow machine.
        with time_limit(part.limit * (1 if context.device.type == "cuda" else 10)):
            rows.extend(part.measure(context))
    except Exception:
        outcome["error"] = traceback.format_exc()
    free_memory()
    return {**outcome, "seconds": round(time.perf_counter() - begun, 1)}


def describe_machine(context: Context) -> dict[str, Any]:
    """Card, host and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": "cpu, a rehearsal: the numbers mean nothing",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions,
    }
    if context.device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        machine["device"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
        machine["cuda"] = torch.version.cuda
    return machine


def render(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [f"{machine['date']}, {machine['device']}; Python {machine['python']}, {versions}.", ""]
    for name, part in document["parts"].items():
        lines += [f"## {part['title']} (`{name}`, {part['seconds']} s)", ""]
        rows = part["result"]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
            lines.append("")
        if "error" in part:
            lines += ["```", part["error"].strip(), "```", ""]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        text = "; ".join(f"{name}: {number}" for name, number in value.items())
    elif isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    elif isinstance(value, list):
        text = ", ".join(map(str, value))
    else:
        text = "" if value is None else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "¦")


def write(folder: Path, document: dict[str, Any]) -> None:
    """Writes gpu.json and gpu.md."""
    (folder / "gpu.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (folder / "gpu.md").write_text(render(document), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts and writes their results after each."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder with RTE's train.tsv; else made up")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=240, help="no part begins after them")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args(arguments)
    if not (options.rehearse or torch.cuda.is_available()):
        parser.error("no GPU was found; --rehearse runs on the CPU")
    options.output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if options.rehearse else "cuda")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        material = Path(folder)
        os.environ["GPTFT_CACHE"] = str(material / "cache")
        scale = Scale(options.rehearse, material, material / "data", torch.get_num_threads())
        parts: dict[str, Any] = {}
        sizes = REHEARSAL if options.rehearse else FULL
        context = Context(device, sizes, scale, parts)
        prepare_material(context, options.data)
        document = {"machine": describe_machine(context), "parts": parts}
        for name in options.only:
            if time.perf_counter() - begun > options.seconds:
                parts[name] = {
                    "title": PARTS[name].title, "result": [], "seconds": 0,
                    "error": f"not begun: {options.seconds:.0f} s were over",
                }  # fmt: skip
            else:
                parts[name] = run_part(PARTS[name], context)
            outcome = "failed" if "error" in parts[name] else "done"
            print(f"{name}: {outcome} in {parts[name]['seconds']} s", flush=True)
            write(options.output, document)
    print((options.output / "gpu.md").read_text(encoding="utf-8"))
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
