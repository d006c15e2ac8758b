"""Attention of a packed row in one kernel: the CPU takes a loop in the kernel's place."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetune.batching.collate import collate, to_device
from finetune.models.attention import interface, varlen
from finetune.models.attention.masks import AttentionLayout
from task_formats import Encoded
from tests.support import samples
from tests.support.samples import assert_same


@pytest.fixture
def calls(monkeypatch) -> list[varlen.TextBounds]:
    """The bounds of every call of the kernel, which is replaced by a loop over the texts."""
    calls = []

    def loop(
        query: Tensor, key: Tensor, value: Tensor, bounds, dropout: float, scaling: float
    ) -> Tensor:
        calls.append(bounds)
        texts = zip(pairwise(bounds.queries.tolist()), pairwise(bounds.keys.tolist()), strict=True)
        outputs = []
        for (first, stop), (first_key, stop_key) in texts:
            assert stop - first <= bounds.most_queries
            assert stop_key - first_key <= bounds.most_keys
            q, k, v = (
                x.transpose(0, 1)
                for x in (query[first:stop], key[first_key:stop_key], value[first_key:stop_key])
            )
            seen = torch.ones(stop - first, stop_key - first_key, dtype=torch.bool)
            if bounds.is_causal:
                # The kernel aligns the last query with the last key.
                seen = seen.tril(seen.shape[1] - seen.shape[0])
            text = scaled_dot_product_attention(q, k, v, seen, scale=scaling, enable_gqa=True)
            outputs.append(text.transpose(0, 1))
        return torch.cat(outputs)

    monkeypatch.setattr(varlen, "flash_attention", loop)
    return calls


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.parametrize("name", ["entailment", "similarity", "multiple_choice"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_kernel_for_all_texts_gives_the_same(
    family: str, name: str, coefficient: float, bases, calls, monkeypatch
) -> None:
    """Without the LM loss, the last block computes the last tokens only."""
    model, many, pad = samples.prepare(name, bases(family), count=7)
    batch = collate(many, "packed", pad)
    expected = samples.run(model, [batch], coefficient)
    assert not calls
    monkeypatch.setattr(interface, "supports_varlen", lambda query, value: True)
    assert_same(samples.run(model, [batch], coefficient), expected)
    assert len(calls) == model.backbone.decoder.config.num_hidden_layers
    assert all((bounds.key_columns is None) == (name == "entailment") for bounds in calls)
    queries = [int(bounds.queries[-1]) for bounds in calls]
    tokens, views = batch.tokens.shape[1], int((batch.last_index >= 0).sum())
    assert queries == [*[tokens] * (len(calls) - 1), tokens if coefficient else views]


@pytest.mark.parametrize(("family", "layout"), [("gpt2", "separate"), ("mistral", "packed")])
def test_padded_rows_and_short_windows_need_another_way(
    family: str, layout, bases, calls, monkeypatch
) -> None:
    model, many, pad = samples.prepare("entailment", bases(family))
    expected = samples.run_as(model, many, layout, pad)
    monkeypatch.setattr(interface, "supports_varlen", lambda query, value: True)
    assert_same(samples.run_as(model, many, layout, pad), expected)
    assert not calls


@pytest.mark.gpu
@pytest.mark.parametrize("last_tokens_only", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_kernel_computes_what_rectangles_do(
    groups: int, last_tokens_only: bool, monkeypatch
) -> None:
    """Outputs and gradients in bfloat16, against float32."""
    shapes = ((4, (1,)), (100, (28, 3, 50)), (76, (1,)), (1, (1, 1)), (299, (1,)))
    examples = [
        Encoded(str(n), [1] * prefix, tuple([1] * length for length in endings))
        for n, (prefix, endings) in enumerate(shapes)
    ]
    batch = to_device(collate(examples, "packed"), torch.device("cuda"))
    torch.manual_seed(0)
    shapes = [(1, heads, batch.tokens.shape[1], 64) for heads in (4, groups, groups)]
    inputs = [torch.randn(shape, device="cuda") for shape in shapes]

    def attend(dtype: torch.dtype) -> tuple[Tensor, ...]:
        layout = AttentionLayout(batch, last_tokens_only)
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
        query = q
        if layout.last_tokens is not None:
            layout.last_tokens.running, layout.last_tokens.keys_values = True, (k, v)
            query = q[:, :, layout.last_tokens.flat_index]
            if dtype == torch.float32:
                layout.last_tokens.keys_values = tuple(
                    x.repeat_interleave(4 // groups, dim=1) for x in (k, v)
                )
        out, _ = interface.packed_attention(
            torch.nn.Module(), query, k, v, None, attention_layout=layout
        )
        (
            out.float() * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)
        ).sum().backward()
        return out, q.grad, k.grad, v.grad

    for found, expected in zip(attend(torch.bfloat16), attend(torch.float32), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() <= 0.02 * expected.norm()
