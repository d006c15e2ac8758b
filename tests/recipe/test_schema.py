"""The schema: fields that may change on resume, tasks from Python, and the JSON schema."""

import pytest
from pydantic import ValidationError

from finetune.pretraining.plan import Plan
from finetune.recipe.loading import override_recipe, parse_recipe, recipe_schema
from finetune.recipe.schema import Recipe, TaskConfig, TrainConfig
from task_formats import FORMATS, Classes, Task

RECIPE = parse_recipe("task: {format: classification, columns: {text: a}, labels: [a, b]}")
SAFE = {
    "task": {"prompt", "prompts"},
    "base": {"path", "revision", "trust_remote_code"},
    "head": set(),
    "data": set(),
    "train": {
        "patience", "layout", "tokens_per_forward", "most_refused", "checkpoint_minutes",
        "checkpoint_updates", "trackers", "tracker_project", "noise_scale",
        "activation_checkpointing", "keep_checkpoints",
    },
}  # fmt: skip


@pytest.mark.parametrize("section", SAFE)
def test_fields_are_fixed_on_resume_unless_the_schema_says_otherwise(section):
    values = getattr(RECIPE, section).model_dump()
    fixed = {f"{section}.{name}": values[name] for name in values.keys() - SAFE[section]}
    assert RECIPE.fixed_on_resume([section]) == fixed


def test_fields_of_a_plan_are_fixed_on_resume_unless_the_schema_says_otherwise():
    plan = Plan(corpus={"train": "x"})
    values = plan.train.model_dump()
    names = values.keys() - SAFE["train"] - {"store"}
    assert plan.fixed_on_resume(["train"]) == {f"train.{name}": values[name] for name in names}


def test_values_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.train.epochs = 5


@pytest.mark.parametrize("values", [{"epochs": True}, {"batch_size": True}, {"betas": (0.9, True)}])
def test_a_boolean_is_not_a_number(values):
    with pytest.raises(ValidationError, match="valid"):
        TrainConfig(**values)


def test_a_task_from_python_is_described_and_built_again():
    columns = {"premise": "a", "hypothesis": "{b} {c}", "label": "y"}
    labels = Classes.of({0: "no", 1: "yes"})
    task = Task(FORMATS["entailment"], columns, labels, ("f1",), "no", unlabelled=frozenset("-"))
    assert TaskConfig.from_task(task).build() == task


def test_a_task_from_python_is_scored_as_the_recipe_says():
    own = Task(FORMATS["classification"], {"text": "x"}, Classes.of(["a", "b"]))
    assert RECIPE.task.resolve(None) == RECIPE.task.build()
    recipe = override_recipe(RECIPE, {"task.metrics": "[f1]", "task.positive": "a"})
    task = recipe.task.resolve(own)
    assert (task.columns, task.metrics, task.positive_class) == ({"text": "x"}, ("f1",), "a")


def test_the_json_schema_describes_every_key_and_allows_no_other():
    schema = recipe_schema()
    sections = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert len(sections) == 11
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["description"]
        for name, value in section["properties"].items():
            assert value.get("description") or "$ref" in value, name


def test_the_json_schema_has_defaults_and_choices():
    train = recipe_schema()["$defs"]["TrainConfig"]["properties"]
    assert train["learning_rate"]["default"] == 1e-4
    assert train["layout"]["enum"] == ["auto", "separate", "shared", "packed"]
    assert Recipe.model_json_schema()["required"] == ["task"]
