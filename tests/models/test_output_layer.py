"""Bases without an output layer, or with one that is not linear, train without an LM loss."""

from pathlib import Path

import pytest
import torch
import transformers

from finetune.checkpointing.model_folder import load_model, save_model
from finetune.models.pretrained import load_language_model
from finetune.recipe.schema import BaseConfig, LoraConfig
from task_formats import UsageError
from tests.support import jobs, samples
from tests.support.families import make_tokenizer
from tests.support.samples import KINDS
from tests.support.small_configs import draw


@pytest.fixture(scope="module")
def body(bases, tmp_path_factory) -> Path:
    """A llama, whose output layer is not tied to the embeddings, saved without it."""
    folder = tmp_path_factory.mktemp("body")
    transformers.AutoModel.from_pretrained(bases("llama")).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(bases("llama")).save_pretrained(folder)
    return folder


def test_a_decoder_without_output_layer_trains_and_is_saved_without_one(body, tmp_path) -> None:
    recipe = jobs.recipe("entailment", body, tmp_path, lm_coefficient=0.0)
    jobs.train(recipe, tmp_path / "run")
    model = tmp_path / "run" / "model"
    assert type(transformers.AutoModel.from_pretrained(model)).__name__ == "LlamaModel"
    weights = transformers.AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert weights[1]["missing_keys"] == {"lm_head.weight"}
    task = recipe.task.resolve(None)
    states = [load_model(model, task, 48)[0].backbone.decoder.model.state_dict() for _ in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_with_adapters_too(body, tmp_path: Path) -> None:
    kind, base = KINDS["entailment"], samples.load(body, lora=LoraConfig(rank=2))
    save_model(tmp_path, samples.task_model(kind, base), base, kind.task, 40)
    assert load_model(tmp_path, kind.task, 40)[1].output == "missing"


def test_the_lm_loss_and_prompting_are_refused(body, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no output layer") as caught:
        jobs.train(jobs.recipe("entailment", body, tmp_path), tmp_path / "run")
    assert caught.value.where == "train.lm_coefficient"
    assert "--lm-coefficient 0" in caught.value.cure
    with pytest.raises(UsageError, match="has no output layer") as caught:
        load_language_model(BaseConfig(path=str(body)))
    assert caught.value.where == "base.path"


def test_an_output_layer_that_is_not_linear_is_kept(tmp_path: Path) -> None:
    draw("modernbert-decoder").save_pretrained(tmp_path / "base")
    make_tokenizer("gpt2").save_pretrained(tmp_path / "base")
    base = samples.load(tmp_path / "base")
    assert base.output == "other"
    kind = KINDS["entailment"]
    save_model(tmp_path / "model", samples.task_model(kind, base), base, kind.task, 40)
    assert load_model(tmp_path / "model", kind.task, 40)[1].output == "other"
