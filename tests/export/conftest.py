"""Finished runs of every kind, made without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpointing.model_folder import save_model
from finetune.checkpointing.run_folder import MODEL, RECIPE, RESULT
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import build_task_model
from finetune.recipe.schema import Recipe
from tests.support import jobs

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(bases, tmp_path) -> MakeRun:
    """Makes a run folder with a random head, as `make_run(kind, family, task=..., ...)`."""

    def make(
        kind: str,
        family: str = "gpt2",
        *,
        bias: bool = True,
        task: dict[str, Any] | None = None,
        base_part: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        recipe = jobs.recipe(
            kind, bases(family), tmp_path / "data", base_part=base_part, held_out=13, **settings
        )
        recipe = jobs.change(recipe, "head", bias=bias)
        return save_run(jobs.change(recipe, "task", **(task or {})), tmp_path / "run")

    return make


def save_run(recipe: Recipe, run: Path) -> Path:
    """Writes a finished run whose head is large enough to matter."""
    torch.manual_seed(3)
    base = load_decoder(recipe.base)
    task = recipe.task.build()
    model = build_task_model(base, task, head_bias=recipe.head.bias)
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.normal_(0, 0.5)
        for name, weight in model.backbone.named_parameters():
            if "lora_" in name or "trainable_tokens" in name:
                weight.normal_(0, 0.1)
    (run / MODEL).mkdir(parents=True)
    save_model(run / MODEL, model, base, task, recipe.train.max_tokens)
    (run / RECIPE).write_text(recipe.to_yaml())
    result = {"scores": {"evaluate": {"accuracy": 0.75, "loss": 0.5}}, "update": 4, "updates": 6}
    made_with = {"versions": {"gptft": "0"}, "rows": {"train": 20, "evaluate": 13}}
    (run / RESULT).write_text(json.dumps({**result, "made_with": made_with}))
    return run
