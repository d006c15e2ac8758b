"""`Predictor.predict` against `Trainer.predict` the run_glue way: pad to 128, batches of 8."""

import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import manual_seed

from benchmarks import material, peers
from benchmarks.contest import Claim, Contest, Found, Play, Scale, clock, main
from benchmarks.ours import WIDTH
from finetune.distributed.setup import create_accelerator
from finetune.evaluation.predictor import Predictor
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.loading import load_recipe

WARM = 16
"""Rows predicted before the clock starts."""


def _trainer(scale: Scale, *, bf16: bool = False) -> Found:
    rows = peers.pairs(scale, "dev", scale.choose(64, 277), padded=True)

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = peers.make_trainer(
                scale, peers.classifier(scale), folder, bf16=bf16, per_device_eval_batch_size=8
            )
            for part in (rows[:WARM], rows):
                found = trainer.predict(part)
                assert np.isfinite(found.predictions).all()
                yield len(part)

    return clock(steps())


def _ours(scale: Scale, *, precision: str = "fp32") -> Found:
    rows = material.rte(scale, "dev")[: scale.choose(64, 277)]
    changes = {
        "base.path": str(material.base(scale)),
        "train.max_tokens": WIDTH,
        "train.precision": precision,
    }
    recipe = load_recipe("rte", changes)
    task, base = recipe.task.build(), load_decoder(recipe.base)
    manual_seed(0)
    model = build_task_model(base, task).eval()
    predictor = Predictor(recipe, task, model, base, create_accelerator(precision))

    def steps() -> Iterator[int]:
        for part in (rows[:WARM], rows):
            assert len(predictor.predict(part)) == len(part)
            yield len(part)

    return clock(steps())


PLAYS: dict[str, Play] = {
    "Trainer.predict, fp32": _trainer,
    "gptft, fp32": _ours,
    "Trainer.predict, bf16": partial(_trainer, bf16=True),
    "gptft, bf16": partial(_ours, precision="bf16"),
}

CONTEST = Contest(
    "prediction",
    "RTE's 277 validation rows, gpt2-small",
    "row",
    PLAYS,
    (
        Claim("gptft, fp32", "Trainer.predict, fp32", 2.5),
        Claim("gptft, bf16", "Trainer.predict, bf16", 2.5),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
