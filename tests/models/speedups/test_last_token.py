"""The last block computes only the tokens whose state is read, with the same result."""

import pytest
import torch
from torch import Tensor, nn

from finetune.batching.collate import Batch, collate, round_up
from finetune.models.attention.masks import AttentionLayout
from finetune.models.blocks import find_blocks
from finetune.models.speedups.last_token import enable_last_token_shortcut
from finetune.models.task_model import TaskModel
from tests.support import samples
from tests.support.families import FAMILIES, OWN_ATTENTION, PACKED_ATTENTION
from tests.support.samples import KINDS, LAYOUTS


def last_matrix(model: TaskModel) -> nn.Module:
    """The last module with a matrix in the last block, which comes after attention."""
    block = find_blocks(model.backbone.decoder)[-1]
    return [m for m in block.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2][-1]


def run(
    model: TaskModel, batch: Batch, last_tokens_only: bool
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Features of all views, gradients, and the number of tokens that the last matrix saw."""
    seen: list[int] = []
    handle = last_matrix(model).register_forward_pre_hook(
        lambda _, x: seen.append(x[0][..., 0].numel())
    )
    features = model.backbone.hidden_states(batch, last_tokens_only=last_tokens_only)[
        batch.last_index[batch.last_index >= 0]
    ]
    handle.remove()
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    model.zero_grad()
    (features * weights).sum().backward()
    named = model.named_parameters()
    gradients = {name: weight.grad for name, weight in named if weight.grad is not None}
    return features.detach(), gradients, sum(seen)


def assert_shortcut(model: TaskModel, batch: Batch) -> None:
    expected, expected_gradients, all_tokens = run(model, batch, last_tokens_only=False)
    features, gradients, last_tokens = run(model, batch, last_tokens_only=True)
    assert all_tokens == batch.tokens.numel()
    assert last_tokens == int((batch.last_index >= 0).sum()) < all_tokens
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=2e-5)
    assert samples.distance(gradients, expected_gradients) < 1e-5


CASES = [(family, layout, "multiple_choice") for family in PACKED_ATTENTION for layout in LAYOUTS]


@pytest.mark.parametrize(
    ("family", "layout", "name"), CASES + [("gpt2", "packed", name) for name in sorted(KINDS)]
)
def test_the_last_block_computes_only_the_tokens_that_are_read(family, layout, name, bases) -> None:
    model, many, pad = samples.prepare(name, bases(family))
    assert_shortcut(model, collate(many, layout, pad))
    # A probability too small to drop anything takes the path of dropout.
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 1e-12
            assert_shortcut(model, collate(many, layout, pad))


def test_with_the_lm_loss_every_token_is_computed(bases) -> None:
    model, many, pad = samples.prepare("entailment", bases("gpt2"))
    batch = collate(many, "packed", pad)
    seen: list[int] = []
    last_matrix(model).register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))
    model(batch, lm=True)
    assert seen == [batch.tokens.numel()]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_names_of_blocks_and_weights_stay(family: str, bases) -> None:
    decoder = samples.load(bases(family)).decoder
    before = (list(decoder.state_dict()), [type(m).__name__ for m in decoder.modules()])
    if family not in OWN_ATTENTION:
        enable_last_token_shortcut(decoder)
    assert before == (list(decoder.state_dict()), [type(m).__name__ for m in decoder.modules()])


def test_an_unknown_tensor_argument_runs_the_whole_block(bases) -> None:
    model, many, pad = samples.prepare("entailment", bases("gpt2"))
    batch = collate(many, "packed", pad)
    block = model.eval().backbone.decoder.base_model.h[-1]
    hidden = torch.randn(*batch.tokens.shape, model.backbone.decoder.config.n_embd)
    layout = AttentionLayout(batch, last_tokens_only=True)
    columns = torch.arange(batch.tokens.shape[1])
    with_unknown = block(hidden, attention_layout=layout, cache_position=columns)
    assert torch.equal(with_unknown, block(hidden, attention_layout=AttentionLayout(batch)))
    shortcut = block(hidden, attention_layout=layout)
    assert int((shortcut != 0).any(-1).sum()) == len(batch.spans)


@pytest.mark.parametrize("family", PACKED_ATTENTION)
def test_without_a_gradient_states_are_the_same_and_numbers_of_tokens_are_rounded(
    family: str, bases
) -> None:
    model, many, pad = samples.prepare("multiple_choice", bases(family))
    batch = collate(many, "packed", pad, rounded=True)
    rows: list[int] = []
    last_matrix(model).register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel()))
    states = []
    for only in (False, True):
        with torch.inference_mode():
            found = model.backbone.hidden_states(batch, last_tokens_only=only)
        states.append(found[batch.last_index[batch.last_index >= 0]])
    torch.testing.assert_close(*states, rtol=1e-5, atol=2e-5)
    assert rows == [batch.tokens.numel(), round_up(int((batch.last_index >= 0).sum()))]
