"""Windows of long texts: the logits of an example are reduced from those of its windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.batching.collate import collate
from finetune.data.token_store import encode_examples
from finetune.models.task_model import build_task_model
from task_formats import Encoded, Example, ViewEncoder, Windows
from tests.support import samples
from tests.support.samples import KINDS, LAYOUTS, WORDS


def make(name, base, windows, count=5):
    """Examples of which every second one has a text that is too long."""
    kind, draw = KINDS[name], np.random.default_rng(0)

    def text(length):
        return " ".join(draw.choice(WORDS, length))

    many = []
    for n in range(count):
        fields = {field: text(draw.integers(2, 6)) for field in kind.format.fields}
        if n % 2 == 0:
            fields[kind.format.fields[0]] = text(20 + 8 * n)
        number = 2 + n % 3 if kind.format.is_multiple_choice else 0
        label = float(n % 5) if name == "score" else n % 2
        many.append(Example(f"x/{n}", fields, tuple(text(3) for _ in range(number)), label))
    tokens = base.task_tokens
    encoder = ViewEncoder(kind.format, tokens.tokenize, tokens.special_tokens, 32, windows)
    return encode_examples(many, encoder)


def split_windows(example):
    """The windows of an example as examples of their own."""
    size = len(example.endings) // example.windows
    for n in range(example.windows):
        endings = example.endings[n * size : (n + 1) * size]
        yield Encoded(f"{example.id}/{n}", example.prefix, endings, example.label)


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_logits_are_the_mean_or_maximum_over_windows_in_every_layout(name, reduce, bases):
    base = samples.load(bases("gpt2"))
    model = samples.task_model(KINDS[name], base).eval()
    model.window_reduction = reduce
    many = list(make(name, base, Windows(6, reduce)))
    assert {example.windows for example in many} > {1}
    pad = base.task_tokens.pad_id
    expected = []
    with torch.no_grad():
        for example in many:
            alone = (collate([one], "separate", pad) for one in split_windows(example))
            table = torch.cat([model(batch).logits for batch in alone])
            expected.append(table.mean(0) if reduce == "mean" else table.amax(0))
        for layout in LAYOUTS:
            logits = model(collate(many, layout, pad)).logits
            for row, wanted in zip(logits, expected, strict=True):
                torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-4, atol=1e-5)
                assert row[len(wanted) :].isneginf().all()


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("name", ["classification", "similarity", "multiple_choice"])
def test_losses_and_gradients_are_equal_in_every_layout(name, reduce, bases):
    base = samples.load(bases("gpt2"))
    model = samples.task_model(KINDS[name], base)
    model.window_reduction = reduce
    many, pad = list(make(name, base, Windows(6, reduce))), base.task_tokens.pad_id
    separate = samples.run_as(model, many, "separate", pad)
    for layout in ("shared", "packed"):
        samples.assert_same(samples.run_as(model, many, layout, pad), separate)
    assert all(gradient.isfinite().all() for gradient in separate.gradients.values())


def test_the_model_of_a_task_reduces_as_the_task_says(bases):
    base, task = samples.load(bases("gpt2")), KINDS["classification"].task
    assert build_task_model(base, task).window_reduction == "mean"
    task = replace(task, windows=Windows(4, "max"))
    assert build_task_model(base, task).window_reduction == "max"
