"""Model cards of finished runs: metadata that the Hub's own classes read, and no local paths."""

import math

from huggingface_hub import ModelCard

from finetune.checkpointing.model_card import (
    CardContent,
    build_decoder_card,
    build_model_card,
    without_local_paths,
)
from finetune.recipe.loading import load_recipe, parse_recipe
from finetune.recipe.schema import WindowsConfig
from tests.support import jobs

RESULT = {
    "scores": {"validation": {"accuracy": 0.75, "loss": 0.5}, "extra": {"accuracy": math.nan}},
    "made_with": {"rows": {"train": 1200}, "versions": {"gptft": "1.0", "torch": None}},
}


def build(recipe, result=RESULT) -> ModelCard:
    """The card after it was written and read again, as the Hub does."""
    return ModelCard(
        str(build_model_card(CardContent("mine", recipe, recipe.task.build(), result)))
    )


def test_a_finished_run_has_a_card(job, undisturbed):
    card = ModelCard.load(undisturbed / "model" / "README.md")
    scores = jobs.result(undisturbed)["scores"]["evaluate"]
    [accuracy] = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", scores["accuracy"])
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "gptft")
    assert card.data.model_name == undisturbed.name
    assert "`bad`, `middling`, `good`" in card.text
    assert str(undisturbed.parent) not in card.content
    assert job.data.train not in card.content


JOB = ("classification", {"epochs": 1})


def test_names_on_the_hub_are_metadata():
    recipe = load_recipe("rte", {"base.path": "gpt2"})
    card = build(recipe)
    assert (card.data.base_model, card.data.datasets) == ("gpt2", ["nyu-mll/glue"])
    [accuracy] = card.data.eval_results
    assert (accuracy.dataset_type, accuracy.dataset_config) == ("nyu-mll/glue", "rte")
    assert (accuracy.dataset_split, accuracy.metric_value) == ("validation", 0.75)
    assert "train 1,200" in card.text
    assert "gptft 1.0" in card.text


def test_a_base_from_a_package_is_named_as_on_the_hub():
    card = build(load_recipe("rte", {"base.path": "smollm2-135m"}))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "path: smollm2-135m" in card.text, "the recipe trains again"


def test_local_files_are_named_without_their_folders(tmp_path):
    recipe = parse_recipe(
        f"""
        task: {{format: classification, columns: {{text: t, label: l}}, labels: [a, b]}}
        base: {{path: {tmp_path}}}
        data: {{train: {tmp_path}/train.csv, evaluate: {tmp_path}/dev.csv,
                extra: {{more: {tmp_path}/more.csv}}}}
        """.replace("\n        ", "\n")
    )
    card = build(recipe)
    assert str(tmp_path) not in card.content
    assert card.data.base_model is None
    shown = without_local_paths(recipe)
    assert (shown.data.train, shown.data.extra) == ("train.csv", {"more": "more.csv"})
    assert parse_recipe(shown.to_yaml()) == shown


def test_a_score_and_choices_are_described():
    card = build(load_recipe("stsb"))
    assert "a score from 0 to 5" in card.text
    assert card.data.metrics == ["pearsonr", "spearmanr"]
    assert build(load_recipe("race")).data.pipeline_tag == "multiple-choice"


def test_the_export_that_a_card_names_is_one_that_the_run_has():
    recipe = load_recipe("mnli")
    assert "gptft export RUN --to standalone" in build(recipe).text
    assert "texts are cut at their ends" in build(recipe).text
    ordered = recipe.model_copy(update={"task": recipe.task.model_copy(update={"ordinal": True})})
    assert "gptft export RUN --to onnx" in build(ordered).text
    windows = recipe.task.model_copy(update={"windows": WindowsConfig()})
    card = build(recipe.model_copy(update={"task": windows}))
    assert "gptft export" not in card.text
    assert "are read in overlapping windows" in card.text


def test_a_pretrained_decoder_has_a_card():
    card = ModelCard(str(build_decoder_card("tiny", {"evaluate": {"perplexity": 12.5}})))
    assert card.data.library_name == "transformers"
    assert "12.5" in card.text
