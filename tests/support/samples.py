"""Encoded examples of every kind, of unequal lengths and numbers of choices, for any tiny base."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.batching.collate import Batch, Layout, collate
from finetune.models.losses import Losses, objective
from finetune.models.pretrained import Base, load_decoder
from finetune.models.task_model import TaskModel, build_task_model
from finetune.recipe.schema import BaseConfig
from task_formats import FORMATS, Classes, Encoded, Example, Format, Range, Task, ViewEncoder
from tests.support.families import SENTENCES

LAYOUTS = ("separate", "shared", "packed")
WORDS = " ".join(SENTENCES).split()


class Kind(NamedTuple):
    """A format with labels: one of the four kinds, or similarity with a score."""

    format: Format
    labels: Classes | Range
    name: str
    """What the reference implementation calls it: "class", "choice" or "score"."""

    @property
    def task(self) -> Task:
        """Columns are named after the fields that they fill."""
        names = [*self.format.fields, *["choices"] * self.format.is_multiple_choice, "label"]
        return Task(self.format, {name: name for name in names}, self.labels)


KINDS = {
    "classification": Kind(FORMATS["classification"], Classes.of(["a", "b", "c"]), "class"),
    "entailment": Kind(FORMATS["entailment"], Classes.of(["no", "yes"]), "class"),
    "similarity": Kind(FORMATS["similarity"], Classes.of(["no", "yes"]), "class"),
    "score": Kind(FORMATS["similarity"], Range(0, 5), "score"),
    "multiple_choice": Kind(FORMATS["multiple_choice"], Classes.of([*"ABCDE"]), "choice"),
}


def load(folder, **options) -> Base:
    """Loads a base without dropout; options are fields of BaseConfig."""
    return load_decoder(
        BaseConfig(path=str(folder), **{"dropout": 0.0, "new_tokens": "mean", **options})
    )


def examples(kind: Kind, base: Base, count: int = 5, max_tokens: int = 40) -> list[Encoded]:
    """Random words of the base's own tokenizer; the choices of an example are 2 to 5."""
    draw = np.random.default_rng(count)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS, draw.integers(1, most)))

    made = []
    for n in range(count):
        fields = {name: text(14) for name in kind.format.fields}
        number = draw.integers(2, 6) if kind.format.is_multiple_choice else 0
        choices = tuple(text(5) for _ in range(number))
        if kind.name == "score":
            label = float(draw.uniform(0, 5))
        else:
            label = int(draw.integers(len(choices) or kind.labels.num_outputs))
        made.append(Example(f"x/{n}", fields, choices, label))
    tokens = base.task_tokens
    encoder = ViewEncoder(kind.format, tokens.tokenize, tokens.special_tokens, max_tokens)
    return encoder.encode(made)


def views(example: Encoded) -> list[list[int]]:
    return [[*example.prefix, *ending] for ending in example.endings]


def task_model(kind: Kind, base: Base, dropout: float = 0.0) -> TaskModel:
    """In training mode, with a head large enough to matter and a bias that is not 0."""
    torch.manual_seed(1)
    model = build_task_model(base, kind.task, dropout)
    with torch.no_grad():
        model.head.weight.mul_(10)
        model.head.bias.normal_()
    return model.train()


def prepare(name: str, folder, count: int = 5) -> tuple[TaskModel, list[Encoded], int]:
    """A model of a kind of task on the base in a folder, examples, and the id of the pad token."""
    kind, base = KINDS[name], load(folder)
    return task_model(kind, base), examples(kind, base, count), base.task_tokens.pad_id


class PassResult(NamedTuple):
    """What the forward and backward passes of an update give."""

    logits: Tensor
    losses: Losses
    gradients: dict[str, Tensor]


def run(model: TaskModel, batches: list[Batch], coefficient: float = 0.5) -> PassResult:
    """All batches of one update, gradients summed; logits of the last batch."""
    model.zero_grad(set_to_none=True)
    parts = []
    for batch in batches:
        outputs = model(batch, lm=coefficient > 0)
        parts.append(objective(outputs, batch, coefficient))
        parts[-1].total.backward()
    sums = Losses(*(torch.stack(part).sum().detach() for part in zip(*parts, strict=True)))
    gradients = {
        name: weight.grad.detach().clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return PassResult(outputs.logits.detach(), sums, gradients)


def run_as(model: TaskModel, many: list[Encoded], layout: Layout, pad: int) -> PassResult:
    return run(model, [collate(many, layout, pad)])


def assert_same(one: PassResult, other: PassResult) -> None:
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-6)
    assert distance(one.gradients, other.gradients) < 1e-5


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|a − b| / |b| over all gradients as one long vector; infinite when their names differ."""
    if one.keys() != other.keys():
        return float("inf")
    gap = sum((one[name] - other[name]).double().square().sum() for name in one)
    size = sum(other[name].double().square().sum() for name in one)
    return float((gap / size).sqrt())
