"""The last block works for the tokens that are read alone, and what they read is the same."""

import pytest
import torch
from torch import Tensor, nn

from finetune.batching.collate import Batch, collate
from finetune.models.attention.masks import AttentionLayout
from finetune.models.speedups.last_token import enable_last_token_shortcut
from finetune.models.task_model import TaskModel
from tests.batching.test_collate import FIXED, FREE, LAYOUTS
from tests.support import samples
from tests.support.families import FAMILIES
from tests.support.samples import KINDS


def widest(model: TaskModel) -> nn.Linear | nn.Module:
    """The last module with a matrix in the last block: what comes after attention."""
    count = model.backbone.decoder.config.get_text_config().num_hidden_layers
    stacks = [
        m
        for m in model.backbone.decoder.modules()
        if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    return [
        m for m in stacks[0][-1].modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2
    ][-1]


def run(
    model: TaskModel, batch: Batch, last_tokens_only: bool
) -> tuple[Tensor, list[Tensor | None], int]:
    """Features of all views, gradients, and how many tokens went through the last matrix."""
    seen: list[int] = []
    handle = widest(model).register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))
    features = model.backbone.hidden_states(batch, last_tokens_only=last_tokens_only)[
        batch.last_index[batch.last_index >= 0]
    ]
    handle.remove()
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("head")]
    found = torch.autograd.grad((features * weights).sum(), parameters, allow_unused=True)
    return features.detach(), list(found), sum(seen)


def assert_narrow(model: TaskModel, batch: Batch) -> None:
    expected, slopes, all_tokens = run(model, batch, last_tokens_only=False)
    found, narrow_slopes, few = run(model, batch, last_tokens_only=True)
    assert all_tokens == batch.tokens.numel()
    assert few == int((batch.last_index >= 0).sum()) < all_tokens
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    assert [slope is None for slope in slopes] == [slope is None for slope in narrow_slopes]
    assert samples.distance(present(narrow_slopes), present(slopes)) < 1e-5


def present(slopes: list[Tensor | None]) -> dict[str, Tensor]:
    return {str(n): slope for n, slope in enumerate(slopes) if slope is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FREE)
def test_the_last_block_computes_the_read_tokens_alone_and_the_same(family, layout, bases) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    model = samples.task_model(kind, base)
    batch = collate(samples.examples(kind, base), layout, base.task_tokens.pad_id)
    assert_narrow(model, batch)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_task_reads_the_same(name: str, bases) -> None:
    kind, base = KINDS[name], samples.load(bases("gpt2"))
    many = samples.examples(kind, base)
    assert_narrow(samples.task_model(kind, base), collate(many, "packed", base.task_tokens.pad_id))


def test_attention_with_dropout_is_narrow_too(bases) -> None:
    """A probability that drops nothing takes the path that drops."""
    kind, base = KINDS["multiple_choice"], samples.load(bases("gpt2"))
    model = samples.task_model(kind, base)
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 1e-12
    for layout in LAYOUTS:
        assert_narrow(model, collate(samples.examples(kind, base), layout, base.task_tokens.pad_id))


def test_with_the_lm_loss_every_token_is_computed(bases) -> None:
    kind, base = KINDS["entailment"], samples.load(bases("gpt2"))
    model = samples.task_model(kind, base)
    batch = collate(samples.examples(kind, base), "packed", base.task_tokens.pad_id)
    seen: list[int] = []
    widest(model).register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))
    model(batch, lm=True)
    assert seen == [batch.tokens.numel()]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_names_of_blocks_and_weights_stay(family: str, bases) -> None:
    decoder = samples.load(bases(family)).decoder
    before = (list(decoder.state_dict()), [type(m).__name__ for m in decoder.modules()])
    if family not in FIXED:
        enable_last_token_shortcut(decoder)
    assert before == (list(decoder.state_dict()), [type(m).__name__ for m in decoder.modules()])


def test_an_argument_that_is_not_understood_makes_the_block_whole(bases) -> None:
    kind, base = KINDS["entailment"], samples.load(bases("gpt2"))
    batch = collate(samples.examples(kind, base), "packed", base.task_tokens.pad_id)
    block = base.decoder.base_model.h[-1].eval()
    hidden = torch.randn(*batch.tokens.shape, base.decoder.config.n_embd)
    whole = block(hidden, attention_layout=AttentionLayout(batch))
    strange = block(
        hidden,
        attention_layout=AttentionLayout(batch, last_tokens_only=True),
        cache_position=torch.arange(batch.tokens.shape[1]),
    )
    assert torch.equal(whole, strange)
    narrowed = block(hidden, attention_layout=AttentionLayout(batch, last_tokens_only=True))
    assert int((narrowed != 0).any(-1).sum()) == len(batch.spans)
