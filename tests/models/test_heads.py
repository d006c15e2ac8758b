"""The linear head: sums over views, choices, dropout and initial values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.models.heads import LinearHead, build_head
from tests.support.samples import KINDS

SIZES = st.tuples(*[st.integers(1, 4)] * 3)


@given(SIZES, st.integers(0, 2**31), st.booleans(), st.booleans())
def test_logits_are_linear_in_the_sum_of_views_or_in_each_choice(
    sizes, seed: int, is_multiple_choice: bool, bias: bool
):
    examples, views, classes = sizes
    torch.manual_seed(seed)
    head = LinearHead(6, classes, is_multiple_choice=is_multiple_choice, bias=bias).double().eval()
    added = head.bias.data.normal_() if bias else 0
    features = torch.randn(examples, views, 6, dtype=torch.float64)
    present = torch.rand(examples, views) < 0.7
    if is_multiple_choice:
        expected = (features @ head.weight[0] + added).masked_fill(~present, -torch.inf)
    else:
        summed = torch.where(present[..., None], features, 0).sum(1)
        expected = summed @ head.weight.t() + added
    torch.testing.assert_close(head(features, present), expected)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_task_decides_the_outputs_of_its_head(name: str) -> None:
    head = build_head(KINDS[name].task, 6)
    outputs = {"classification": 3, "entailment": 2, "similarity": 2}.get(name, 1)
    shapes = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    assert shapes == {"weight": (outputs, 6), "bias": (outputs,)}


def test_one_dropout_mask_serves_all_views_of_an_example() -> None:
    torch.manual_seed(0)
    head = LinearHead(400, 1, is_multiple_choice=True, dropout=0.5).train()
    present = torch.ones(3, 4, dtype=torch.bool)
    scores = head(torch.randn(3, 1, 400).expand(3, 4, 400), present)
    assert (scores == scores[:, :1]).all()
    scores = head(torch.randn(400).expand(3, 4, 400), present)
    assert len(scores[:, 0].unique()) == 3, "examples share a mask"


def test_dropout_keeps_the_expected_features() -> None:
    torch.manual_seed(0)
    head = LinearHead(10_000, 1, is_multiple_choice=True, dropout=0.1).train()
    with torch.no_grad():
        head.weight.fill_(1 / 10_000)
        score = head(torch.ones(1, 1, 10_000), torch.ones(1, 1, dtype=torch.bool)).item()
    assert score == pytest.approx(1.0, abs=0.02)
    assert score != 1.0


def test_a_new_head_is_drawn_as_in_the_original_code() -> None:
    torch.manual_seed(0)
    head = LinearHead(50_000, 2, is_multiple_choice=False)
    assert head.bias.tolist() == [0, 0]
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.weight.mean().item() == pytest.approx(0, abs=5e-4)
