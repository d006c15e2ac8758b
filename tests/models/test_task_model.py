"""TaskModel against the float64 reference, its head, its losses, and transformers' own numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from finetune.batching.collate import collate
from finetune.models import decoder as decoder_module
from finetune.models import losses
from finetune.models.heads import LinearHead
from finetune.models.language_model import LanguageModel
from finetune.models.task_model import TaskModel
from task_formats import Encoded
from tests.support import reference, samples
from tests.support.families import FAMILIES
from tests.support.samples import KINDS, Kind

KIND_NAMES = sorted(KINDS)


# -- against the reference -------------------------------------------------------------------------


def expect(model: TaskModel, kind: Kind, many: list[Encoded], extract: int, coefficient: float):
    """The reference's losses and gradients, from float64 copies of the model's weights."""
    decoder = model.backbone.decoder
    weights = {
        name: value.detach().double().requires_grad_()
        for name, value in decoder.base_model.named_parameters()
    }
    head = reference.Head(
        model.head.weight.detach().double().requires_grad_(),
        model.head.bias.detach().double().requires_grad_(),
    )
    shape = reference.Shape(decoder.config.n_head, decoder.config.model_type == "gpt2")
    texts = [samples.views(example) for example in many]
    labels = [example.label for example in many]
    loss = reference.objective(weights, shape, head, texts, labels, kind.name, extract, coefficient)
    loss.total.backward()
    prefix = f"backbone.decoder.{decoder.base_model_prefix}."
    gradients = {f"{prefix}{name}": value.grad for name, value in weights.items()}
    return loss, {**gradients, "head.weight": head.weight.grad, "head.bias": head.bias.grad}


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("family", "layout"),
    [("openai-gpt", "separate"), ("gpt2", "separate"), ("gpt2", "shared"), ("gpt2", "packed")],
)
@pytest.mark.parametrize("name", KIND_NAMES)
def test_loss_and_gradient_are_the_papers(name, family, layout, precision, bases) -> None:
    kind, base = KINDS[name], samples.load(bases(family))
    many = samples.examples(kind, base)
    model = samples.task_model(kind, base).to(precision)
    expected, gradients = expect(model, kind, many, base.task_tokens.special_tokens.extract, 0.5)
    found = samples.run_as(model, many, layout, base.task_tokens.pad_id)
    for one, other in zip(found.losses, expected, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-6)
    assert samples.distance(found.gradients, gradients) < 1e-6


@pytest.mark.parametrize("coefficient", [0.0, 2.0])
def test_the_coefficient_weighs_the_language_loss(coefficient: float, bases) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases("gpt2"))
    many = samples.examples(kind, base)
    model = samples.task_model(kind, base).double()
    expected, gradients = expect(
        model, kind, many, base.task_tokens.special_tokens.extract, coefficient
    )
    found = samples.run(model, [collate(many, "packed", base.task_tokens.pad_id)], coefficient)
    assert found.losses.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert samples.distance(found.gradients, gradients) < 1e-6


def test_without_a_coefficient_no_language_loss_is_computed(bases, monkeypatch) -> None:
    kind, base = KINDS["entailment"], samples.load(bases("gpt2"))
    model = samples.task_model(kind, base)
    batch = collate(samples.examples(kind, base), "packed", base.task_tokens.pad_id)

    def refuse(*_: object) -> None:
        raise AssertionError("the language-model loss was computed")

    monkeypatch.setattr(decoder_module, "lm_loss", refuse)
    assert samples.run(model, [batch], 0.0).losses.lm == 0
    with pytest.raises(AssertionError, match="was computed"):
        samples.run(model, [batch], 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_that_transformers_finds_for_each_view_alone(family, bases) -> None:
    """Our attention, masks and positions against the family's own code, one view at a time."""
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    many = samples.examples(kind, base, count=3)
    model = samples.task_model(kind, base).eval()
    layout = "shared" if base.decoder.config._attn_implementation == "gptft" else "separate"
    batch = collate(many, layout, base.task_tokens.pad_id)
    with torch.no_grad():
        found = model.backbone.hidden_states(batch)[batch.last_index.flatten()]
        base.decoder.set_attn_implementation("eager")
        for k, view in enumerate(view for example in many for view in samples.views(example)):
            expected = base.decoder.base_model(torch.tensor([view])).last_hidden_state[0, -1]
            at = (batch.last_index.flatten() >= 0).nonzero()[k]
            torch.testing.assert_close(found[at][0], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_has_the_loss_that_transformers_gives_it(family, bases) -> None:
    base = samples.load(bases(family))
    blocks = np.random.default_rng(0).integers(0, len(base.task_tokens.tokenizer) - 4, size=(3, 24))
    batch = collate([Encoded(f"c/{n}", block, ()) for n, block in enumerate(blocks)], "separate")
    assert batch.last_index.shape == (3, 0)
    model = LanguageModel(base.decoder).eval()
    with torch.no_grad():
        found = model(batch, lm=True)
        base.decoder.set_attn_implementation("eager")
        tokens = torch.from_numpy(blocks)
        expected = base.decoder(tokens, labels=tokens).loss
    assert found.logits.shape == (3, 0)
    torch.testing.assert_close(found.lm_loss, expected, rtol=1e-6, atol=1e-6)


# -- the head --------------------------------------------------------------------------------------

SIZES = st.tuples(*[st.integers(1, 4)] * 3)


@given(SIZES, st.integers(0, 2**31))
def test_the_head_is_linear_in_the_sum_of_the_views(sizes, seed: int) -> None:
    examples, views, classes = sizes
    torch.manual_seed(seed)
    head = LinearHead(6, classes, chooses=False).double().eval()
    head.bias.data.normal_()
    features = torch.randn(examples, views, 6, dtype=torch.float64)
    present = torch.rand(examples, views) < 0.7
    summed = torch.where(present[..., None], features, 0).sum(1)
    torch.testing.assert_close(head(features, present), summed @ head.weight.t() + head.bias)


@given(SIZES, st.integers(0, 2**31))
def test_a_choice_is_scored_by_its_own_view_alone(sizes, seed: int) -> None:
    examples, views, _ = sizes
    torch.manual_seed(seed)
    head = LinearHead(6, 5, chooses=True).double().eval()
    assert head.weight.shape == (1, 6)
    head.bias.data.normal_()
    features = torch.randn(examples, views, 6, dtype=torch.float64)
    present = torch.rand(examples, views) < 0.7
    expected = (features @ head.weight[0] + head.bias).masked_fill(~present, -torch.inf)
    torch.testing.assert_close(head(features, present), expected)


def test_one_dropout_mask_serves_all_views_of_an_example() -> None:
    torch.manual_seed(0)
    head = LinearHead(400, 1, chooses=True, dropout=0.5).train()
    features = torch.randn(3, 1, 400).expand(3, 4, 400)
    scores = head(features, torch.ones(3, 4, dtype=torch.bool))
    assert (scores == scores[:, :1]).all()
    same = torch.randn(400).expand(3, 4, 400)
    scores = head(same, torch.ones(3, 4, dtype=torch.bool))
    assert len(scores[:, 0].unique()) == 3, "examples share a mask"


def test_dropout_keeps_the_expected_features() -> None:
    torch.manual_seed(0)
    head = LinearHead(10_000, 1, chooses=True, dropout=0.1).train()
    with torch.no_grad():
        head.weight.fill_(1 / 10_000)
        score = head(torch.ones(1, 1, 10_000), torch.ones(1, 1, dtype=torch.bool)).item()
    assert score == pytest.approx(1.0, abs=0.02)
    assert score != 1.0


def test_a_new_head_is_the_papers() -> None:
    torch.manual_seed(0)
    head = LinearHead(50_000, 2, chooses=False)
    assert head.bias.tolist() == [0, 0]
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.weight.mean().item() == pytest.approx(0, abs=5e-4)


# -- the losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_the_language_loss_is_the_naive_one_with_all_its_gradients(
    targets: int, biased: bool, monkeypatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", 8)
    torch.manual_seed(targets)
    parts = [torch.randn(targets, 6), torch.randn(11, 6), torch.randn(11)]
    parts = [part.double().requires_grad_() for part in parts[: 2 + biased]]
    target, share = torch.randint(11, (targets,)), torch.rand(targets).double()

    def gradients(loss):
        found = torch.autograd.grad(3 * loss, parts, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parts, found, strict=True)]

    states, weight, bias = (*parts, None)[:3]
    found = losses.lm_loss(states, weight, bias, target, share)
    logits = torch.nn.functional.linear(states, weight, bias)
    naive = (share * cross_entropy(logits, target, reduction="none")).sum()
    torch.testing.assert_close(found, naive)
    for one, other in zip(gradients(found), gradients(naive), strict=True):
        torch.testing.assert_close(one, other)


def test_the_language_loss_leaves_what_is_frozen_alone() -> None:
    states, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    losses.lm_loss(states, weight, None, torch.tensor([0, 1, 2, 3]), torch.ones(4)).backward()
    assert weight.grad is None
    assert states.grad is not None


@pytest.mark.parametrize("name", KIND_NAMES)
def test_rows_without_a_label_count_for_nothing_but_language(name: str, bases) -> None:
    kind, base = KINDS[name], samples.load(bases("gpt2"))
    many = samples.examples(kind, base)
    model = samples.task_model(kind, base)
    more = [*many, many[0]._replace(label=None)]
    with_more = samples.run(model, [collate(more, "packed", base.task_tokens.pad_id)])
    without = samples.run(model, [collate(many, "packed", base.task_tokens.pad_id)])
    torch.testing.assert_close(with_more.losses.task, without.losses.task)
    assert with_more.losses.lm != without.losses.lm
    none = [example._replace(label=None) for example in many]
    found = samples.run(model, [collate(none, "packed", base.task_tokens.pad_id)])
    assert found.losses.task == 0
    assert all(part.isfinite().all() for part in found.gradients.values())


def test_the_score_of_an_ending_is_its_log_likelihood(bases) -> None:
    """A prompt's answers, token by token, against transformers' own logits."""
    kind, base = KINDS["multiple_choice"], samples.load(bases("gpt2"))
    many = samples.examples(kind, base, count=3)
    model = LanguageModel(base.decoder).eval()
    with torch.no_grad():
        found = [
            model(collate(many, layout, base.task_tokens.pad_id)).logits
            for layout in ("separate", "packed")
        ]
        base.decoder.set_attn_implementation("eager")
        for n, example in enumerate(many):
            for k, view in enumerate(samples.views(example)):
                chances = base.decoder(torch.tensor([view])).logits[0].log_softmax(-1)
                at = range(len(example.prefix), len(view))
                expected = sum(chances[t - 1, view[t]] for t in at)
                for scores in found:
                    torch.testing.assert_close(scores[n, k], expected, rtol=1e-5, atol=1e-5)
            assert (found[0][n, len(example.endings) :] == -torch.inf).all()
