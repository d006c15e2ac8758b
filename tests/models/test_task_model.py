"""TaskModel against the float64 reference implementation and transformers' own states."""

import pytest
import torch

from finetune.batching.collate import collate
from finetune.models import decoder as decoder_module
from finetune.models.task_model import TaskModel
from task_formats import Encoded
from tests.support import reference, samples
from tests.support.families import FAMILIES, PACKED_ATTENTION
from tests.support.samples import KINDS, Kind

KIND_NAMES = sorted(KINDS)


def expect(model: TaskModel, kind: Kind, many: list[Encoded], coefficient: float):
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
    extract = many[0].endings[0][-1]
    labels = [example.label for example in many]
    loss = reference.objective(weights, shape, head, texts, labels, kind.name, extract, coefficient)
    loss.total.backward()
    prefix = f"backbone.decoder.{decoder.base_model_prefix}."
    gradients = {f"{prefix}{name}": value.grad for name, value in weights.items()}
    return loss, {**gradients, "head.weight": head.weight.grad, "head.bias": head.bias.grad}


CASES = [("openai-gpt", "separate"), ("gpt2", "separate"), ("gpt2", "shared"), ("gpt2", "packed")]


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("name", KIND_NAMES)
def test_loss_and_gradient_are_the_papers(name, family, layout, precision, bases) -> None:
    model, many, pad = samples.prepare(name, bases(family))
    model = model.to(precision)
    for coefficient in (0.5, 2.0, 0.0) if name == "multiple_choice" else (0.5,):
        expected, gradients = expect(model, KINDS[name], many, coefficient)
        result = samples.run(model, [collate(many, layout, pad)], coefficient)
        assert result.losses.task.item() == pytest.approx(expected.task.item(), rel=1e-6)
        assert result.losses.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
        assert samples.distance(result.gradients, gradients) < 1e-6


def test_without_a_coefficient_no_lm_loss_is_computed(bases, monkeypatch) -> None:
    model, many, pad = samples.prepare("entailment", bases("gpt2"))
    monkeypatch.setattr(decoder_module, "lm_loss", None)
    assert samples.run(model, [collate(many, "packed", pad)], 0.0).losses.lm == 0
    with pytest.raises(TypeError, match="not callable"):
        samples.run(model, [collate(many, "packed", pad)], 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers_for_each_view_alone(family, bases) -> None:
    """Our attention, masks and positions against the family's own code, one view at a time."""
    model, many, pad = samples.prepare("multiple_choice", bases(family), count=3)
    decoder = model.eval().backbone.decoder
    batch = collate(many, "shared" if family in PACKED_ATTENTION else "separate", pad)
    with torch.no_grad():
        states = model.backbone.hidden_states(batch)[batch.last_index[batch.last_index >= 0]]
        decoder.set_attn_implementation("eager")
        views = [view for example in many for view in samples.views(example)]
        for state, view in zip(states, views, strict=True):
            expected = decoder.base_model(torch.tensor([view])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", KIND_NAMES)
def test_rows_without_a_label_count_only_for_the_lm_loss(name: str, bases) -> None:
    model, many, pad = samples.prepare(name, bases("gpt2"))
    more = [*many, many[0]._replace(label=None)]
    with_more = samples.run_as(model, more, "packed", pad)
    without = samples.run_as(model, many, "packed", pad)
    torch.testing.assert_close(with_more.losses.task, without.losses.task)
    assert with_more.losses.lm != without.losses.lm
    none = [example._replace(label=None) for example in many]
    result = samples.run_as(model, none, "packed", pad)
    assert result.losses.task == 0
    assert all(gradient.isfinite().all() for gradient in result.gradients.values())
