"""With `center_states` the head reads differences from a mean; the saved one reads states."""

import pytest
import torch
from transformers import AutoModel

from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model
from finetune.models.task_tokens import EXTRACT
from tests.support import jobs

CENTERED = {"center_states": True}
KINDS = ("classification", "entailment", "similarity", "score", "multi_label")


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_that_of_what_the_head_reads(kind, bases, tmp_path):
    """In passes of few tokens too, of examples that are computed alone by transformers."""
    recipe = jobs.recipe(kind, bases("llama"), tmp_path, train=40, tokens_per_forward=60)
    job = jobs.prepare(jobs.change(recipe, "head", **CENTERED))
    job.save_model(tmp_path / "model")
    decoder = AutoModel.from_pretrained(tmp_path / "model")
    sums = []
    with torch.no_grad():
        for row in job.sampler.order(0)[:32].tolist():
            tokens = collate([job.examples[row]], "separate").tokens
            # Views are alike in length, or padded on the right of the extract token.
            extract = job.base.task_tokens.tokenizer.convert_tokens_to_ids(EXTRACT)
            views = [view[: view.tolist().index(extract) + 1] for view in tokens]
            sums.append(sum(decoder(view[None])[0][0, -1] for view in views))
    torch.testing.assert_close(
        job.model.head.mean_state, torch.stack(sums).mean(0), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_head_reads_plain_states(kind, bases, tmp_path):
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path, train=40)
    job = jobs.prepare(jobs.change(recipe, "head", **CENTERED))
    job.save_model(tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", job.task, job.config.train.max_tokens)
    assert loaded.head.mean_state is None
    batch = collate([job.examples[n] for n in range(8)], job.batch_config.layout)
    with torch.no_grad():
        expected, found = job.model.eval()(batch).logits, loaded(batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("multiple_choice", CENTERED), ("entailment", {"bias": False, **CENTERED}), ("score", {})],
)
def test_choices_and_a_head_without_a_bias_have_no_mean(kind, head, bases, tmp_path):
    recipe = jobs.change(jobs.recipe(kind, bases("gpt2"), tmp_path), "head", **head)
    assert jobs.prepare(recipe).model.head.mean_state is None


@pytest.mark.parametrize("kind", ["classification", "multiple_choice", "score"])
def test_updates_are_stratified_by_classes_only(kind, bases, tmp_path):
    job = jobs.prepare(jobs.recipe(kind, bases("gpt2"), tmp_path, stratify=True))
    classes = job.sampler.classes
    assert (classes is not None) == (kind == "classification")
    assert classes is None or classes.tolist() == job.examples.labels.tolist()
