"""Compiled blocks compute the same and are compiled once for all lengths."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from finetune.models.speedups.compilation import compile_blocks
from tests.support import samples
from tests.support.samples import assert_same


@pytest.fixture(autouse=True)
def reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Dynamo inspects the tensors that it captures, and PyTorch warns about that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_compiled_blocks_are_the_same_and_are_compiled_once_for_all_lengths(family, bases) -> None:
    model, many, pad = samples.prepare("multiple_choice", bases(family), count=9)
    decoder = model.backbone.decoder
    names, batches = list(decoder.state_dict()), [many[:n] for n in (3, 4, 6, 9)]
    expected = [samples.run_as(model, many, "packed", pad) for many in batches]
    counter = CompileCounter()
    compile_blocks(decoder, backend=counter)
    assert list(decoder.state_dict()) == names
    counts = []
    for many, plain in zip(batches, expected, strict=True):
        assert_same(samples.run_as(model, many, "packed", pad), plain)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    # The second length may show which sizes are dynamic; then nothing is compiled again.
    assert len(set(counts[1:])) == 1
