"""The linear head: sums over views, choices, dropout and initial values."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.models.heads import LinearHead, OrdinalHead, build_head
from finetune.models.losses import task_loss
from task_formats import FORMATS, Classes, Task
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


@pytest.mark.parametrize("outputs", [3, 5])
def test_ordered_classes_have_the_probabilities_of_cumulative_logits(outputs):
    """P(class <= k) = sigmoid(t_k - s) with one score s; equally likely where s is 0."""
    torch.manual_seed(0)
    labels = replace(Classes.of([f"c{k}" for k in range(outputs)]), ordered=True)
    head = build_head(
        Task(FORMATS["similarity"], {"first": "a", "second": "b"}, labels), 6
    ).double()
    head.eval()
    features, present = torch.randn(7, 2, 6).double(), torch.ones(7, 2, dtype=torch.bool)
    even = head(features * 0, present).exp()
    torch.testing.assert_close(even, torch.full_like(even, 1 / outputs), rtol=1e-5, atol=0)
    with torch.no_grad():
        head.log_gaps.normal_()
        head.first_threshold.normal_()
    logits = head(30 * features, present)
    score = (30 * features.sum(1)) @ head.weight[0]
    thresholds = torch.cat([head.first_threshold, head.log_gaps.exp()]).cumsum(0)
    below = torch.sigmoid(thresholds - score[:, None])
    ends = torch.zeros(7, 1, dtype=torch.float64), torch.ones(7, 1, dtype=torch.float64)
    cumulative = torch.cat([ends[0], below, ends[1]], 1)
    torch.testing.assert_close(logits.exp(), cumulative.diff(dim=1), rtol=1e-6, atol=1e-12)
    label = torch.arange(7) % outputs
    likelihood = -cumulative.diff(dim=1).log()[torch.arange(7), label]
    torch.testing.assert_close(task_loss(logits, label), likelihood, rtol=1e-6, atol=1e-9)
    gradients = (
        torch.autograd.grad(loss.sum(), list(head.parameters()), retain_graph=True)
        for loss in (task_loss(logits, label), likelihood)
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["classification", "similarity", "ordered"])
def test_a_head_without_its_mean_state_computes_the_same(name):
    torch.manual_seed(0)
    task = KINDS["classification" if name == "ordered" else name].task
    if name == "ordered":
        task = replace(task, labels=replace(Classes.of("abc"), ordered=True))
    head, plain = (build_head(task, 6).double().eval() for _ in range(2))
    features, present = torch.randn(7, 2, 6).double(), torch.ones(7, 2, dtype=torch.bool)
    present[1, 1] = False
    head.mean_state = torch.randn(6).double()
    assert head.can_fold_mean
    plain.load_state_dict(head.folded_tensors())
    assert plain.mean_state is None
    logits = head(features, present)
    torch.testing.assert_close(plain(features, present), logits, rtol=1e-9, atol=1e-9)
    head.mean_state = None
    assert (head(features, present) - logits).abs().max() > 1e-3


def test_choices_and_heads_without_a_bias_have_no_place_for_a_mean():
    assert not build_head(KINDS["multiple_choice"].task, 6).can_fold_mean
    assert not build_head(KINDS["classification"].task, 6, bias=False).can_fold_mean


def test_a_score_far_outside_gives_finite_logits_and_gradients():
    head = OrdinalHead(1, 4, dropout=0).requires_grad_()
    with torch.no_grad():
        head.weight.fill_(1)
    features = torch.tensor([[[500.0]], [[-500.0]]])
    loss = task_loss(head(features, torch.ones(2, 1, dtype=torch.bool)), torch.tensor([0, 3]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([500, 500], rel=0.01)
    assert all(weight.grad.isfinite().all() for weight in head.parameters())
