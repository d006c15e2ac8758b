"""Dense layers with oneDNN: the same function, the same gradients, the same names."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune import products
from finetune.fusions import quicken

HAS_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has not both oneDNN and MKL")

LAYERS = [nn.Linear(24, 40), nn.Linear(40, 8, bias=False), Conv1D(40, 24)]


def width(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[0]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_those_of_the_plain_layer(layer: nn.Module, transposed: bool):
    quick = deepcopy(layer)
    products.exchange(quick)
    assert type(quick) is not type(layer)
    assert isinstance(quick, type(layer))
    values = torch.randn(3, width(layer), 7).mT if transposed else torch.randn(3, 7, width(layer))
    found = []
    for one in (layer, quick):
        given = values.clone(memory_format=torch.preserve_format).requires_grad_()
        # The plain Conv1D takes dense rows only.
        out = one(given.contiguous() if one is layer else given)
        outer = torch.linspace(-1, 1, out.numel()).view(out.shape)
        slopes = torch.autograd.grad(out, [given, *one.parameters()], outer)
        found.append((out, *slopes))
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_other_types_go_the_plain_way(layer: nn.Module, monkeypatch: pytest.MonkeyPatch):
    quick = deepcopy(layer)
    products.exchange(quick)
    values = torch.randn(5, width(layer))
    seen = []
    dense = products._dense
    monkeypatch.setattr(products, "_dense", lambda *all: seen.append(all) or dense(*all))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(values), layer(values))
    assert torch.equal(quick(values[:0]), layer(values[:0]))
    assert torch.equal(quick.double()(values.double()), deepcopy(layer).double()(values.double()))
    assert not seen
    quick.float()(values)
    assert len(seen) == 1


def test_frozen_weights_get_no_gradient():
    quick = nn.Linear(6, 5).requires_grad_(False)
    products.exchange(quick)
    values = torch.randn(2, 6, requires_grad=True)
    (slope,) = torch.autograd.grad(quick(values).sum(), values)
    torch.testing.assert_close(slope, quick.weight.sum(0).expand(2, 6))
    assert quick.weight.grad is None


def test_a_decoder_is_given_them_only_where_they_are_faster(bases, monkeypatch):
    from transformers import AutoModelForCausalLM

    kinds = {}
    for wanted in (False, True):
        monkeypatch.setattr("finetune.fusions.prefers_onednn", lambda wanted=wanted: wanted)
        decoder = AutoModelForCausalLM.from_pretrained(bases("llama"))
        names = list(decoder.state_dict())
        quicken(decoder)
        assert list(decoder.state_dict()) == names
        kinds[wanted] = {type(m) for m in decoder.modules() if isinstance(m, nn.Linear)}
    assert kinds == {False: {nn.Linear}, True: {products._Linear}}
