"""Embedding gradients that accumulate in place are those that autograd makes."""

import pytest
import torch
from torch import Tensor, nn

from finetune.batching.collate import Batch, collate, count_totals
from finetune.models.losses import objective
from finetune.models.speedups.embedding_gradients import (
    accumulate_in_place,
    accumulates_in_place,
    clear_gradients,
)
from finetune.models.task_model import TaskModel
from tests.support import samples


def make(bases, family: str) -> tuple[TaskModel, list[Batch]]:
    """A model in float64 and an update of two passes."""
    base = samples.load(bases(family))
    kind = samples.KINDS["similarity"]
    many = samples.examples(kind, base, 6)
    totals = count_totals(many)
    batches = [
        collate(part, "separate", base.task_tokens.pad_id, totals) for part in (many[:4], many[4:])
    ]
    return samples.task_model(kind, base).double(), batches


def gradients(model: TaskModel, batches: list[Batch], coefficient: float) -> dict[str, Tensor]:
    clear_gradients(model)
    for batch in batches:
        objective(model(batch, lm=coefficient > 0), batch, coefficient).total.backward()
    parts = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: part.clone() for name, part in parts.items() if part is not None}


@pytest.mark.parametrize("coefficient", [0, 0.5])
@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "llama", "gpt_neox"])
def test_gradients_are_those_that_autograd_makes(bases, family: str, coefficient: float):
    model, batches = make(bases, family)
    expected = gradients(model, batches, coefficient)
    accumulate_in_place(model, 1)
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    assert tables
    for _ in range(2):  # The second update begins with what the first has left.
        in_place = gradients(model, batches, coefficient)
        addresses = [table.grad.data_ptr() for table in tables]
        assert all(part.layout == torch.strided for part in in_place.values())
        torch.testing.assert_close(in_place, expected, rtol=1e-11, atol=1e-13)
    clear_gradients(model)
    assert [table.grad.data_ptr() for table in tables] == addresses
    assert not any(table.grad.any() for table in tables)
    marked = {id(table) for table in tables}
    assert all(part.grad is None for part in model.parameters() if id(part) not in marked)


@pytest.mark.parametrize("coefficient", [0, 0.5])
def test_a_pass_makes_no_gradient_as_large_as_the_table(bases, coefficient: float):
    model, batches = make(bases, "gpt2")
    table = model.backbone.decoder.get_input_embeddings().weight
    accumulate_in_place(model, 1)
    clear_gradients(model)
    layouts = []
    table.register_hook(lambda gradient: layouts.append(gradient.layout))
    objective(model(batches[0], lm=coefficient > 0), batches[0], coefficient).total.backward()
    # Autograd handles rows only; the LM loss adds its part itself.
    assert layouts == [torch.sparse_coo]


@pytest.mark.parametrize(("processes", "device"), [(2, "cpu"), (1, "meta")])
def test_with_processes_or_on_a_device_nothing_changes(bases, processes: int, device: str):
    model, _ = make(bases, "gpt2")
    accumulate_in_place(model.to(device), processes)
    clear_gradients(model)
    assert all(part.grad is None and not accumulates_in_place(part) for part in model.parameters())
    assert not any(getattr(part, "sparse", False) for part in model.modules())


def test_a_frozen_table_gets_no_gradient(bases):
    model, batches = make(bases, "gpt2")
    table = model.backbone.decoder.get_input_embeddings().weight.requires_grad_(False)
    accumulate_in_place(model, 1)
    gradients(model, batches, 0)
    assert table.grad is None
