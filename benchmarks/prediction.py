"""`Predictor.predict`, compared with `Trainer.predict` as in run_glue: pad to 128, batches of 8."""

import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import manual_seed

from benchmarks import inputs, peers
from benchmarks.gptft import WIDTH
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.predictor import Predictor
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.loading import load_recipe

WARM = 16
"""Rows predicted before the clock starts."""


def _trainer(scale: Scale, *, bf16: bool = False) -> Measurement:
    rows = peers.pairs(scale, "dev", scale.choose(64, 277), padded=True)

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = peers.make_trainer(
                scale, peers.classifier(scale), folder, bf16=bf16, per_device_eval_batch_size=8
            )
            for batch in (rows[:WARM], rows):
                output = trainer.predict(batch)
                assert np.isfinite(output.predictions).all()
                yield len(batch)

    return clock(steps())


def _gptft(scale: Scale, *, precision: str = "fp32") -> Measurement:
    rows = inputs.rte(scale, "dev")[: scale.choose(64, 277)]
    changes = {
        "base.path": str(inputs.base(scale)),
        "train.max_tokens": WIDTH,
        "train.precision": precision,
    }
    recipe = load_recipe("rte", changes)
    task, base = recipe.task.build(), load_decoder(recipe.base)
    manual_seed(0)
    model = build_task_model(base, task).eval()
    predictor = Predictor(recipe, task, model, base, create_accelerator(precision))

    def steps() -> Iterator[int]:
        for batch in (rows[:WARM], rows):
            assert len(predictor.predict(batch)) == len(batch)
            yield len(batch)

    return clock(steps())


CONTESTANTS: dict[str, Contestant] = {
    "Trainer.predict, fp32": _trainer,
    "gptft, fp32": _gptft,
    "Trainer.predict, bf16": partial(_trainer, bf16=True),
    "gptft, bf16": partial(_gptft, precision="bf16"),
}

BENCHMARK = Benchmark(
    "prediction",
    "RTE's 277 validation rows, gpt2-small",
    "row",
    CONTESTANTS,
    (
        Claim("gptft, fp32", "Trainer.predict, fp32", 2.6),
        Claim("gptft, bf16", "Trainer.predict, bf16", 2.6),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
