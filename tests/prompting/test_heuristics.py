"""GPT-1's zero-shot heuristics (section 5), and scores predicted as expected values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.cli import main
from finetune.evaluation.metrics import compute_metrics
from finetune.prompting import PromptEvaluator, PromptOptions
from finetune.prompting.normalization import best_threshold
from finetune.recipe.loading import load_recipe, parse_recipe
from finetune.recipe.schema import Recipe
from task_formats import Demonstrations, PromptEncoder, UsageError

TRAIN = [("it rained all night", 1), ("rained it night all", 0), ("he is late", 1)]
TRAIN += [("late he she is", 0), ("a man rides a horse", 1), ("horse a a rides", 0)]
DEV = [("the street is wet", 1), ("wet the is street", 0), ("she found it", 1), ("it it", 0)]


def cola(folder: Path, base: Path, threshold: str) -> Recipe:
    """The shipped recipe with GPT-1's prompt, on rows of this test."""
    for name, rows in (("train", TRAIN), ("dev", DEV)):
        lines = [json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    recipe = load_recipe("cola")
    part = recipe.task.with_prompt("gpt1")
    prompt = part.prompt.model_copy(update={"threshold": threshold})
    return Recipe.model_validate(
        {
            "task": {**part.model_dump(), "prompt": prompt.model_dump()},
            "base": {"path": str(base)},
            "data": {"train": str(folder / "train.jsonl"), "evaluate": str(folder / "dev.jsonl")},
            "train": {"precision": "fp32"},
        }
    )


def mean_log_probabilities(base: Path, texts: list[str]) -> list[float]:
    """Mean log-probability per token of each text after the end-of-text token, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    found = []
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].double().log_softmax(-1)
        found.append(float(logs.gather(1, ids[0, 1:, None]).mean()))
    return found


def test_the_median_threshold_accepts_half_of_the_sentences(bases, tmp_path):
    result = PromptEvaluator(cola(tmp_path, bases("gpt2"), "median")).evaluate()
    logs = mean_log_probabilities(bases("gpt2"), [text for text, _ in DEV])
    assert [one.scores[0] for one in result.predictions] == pytest.approx(logs, rel=1e-5)
    names = ["acceptable" if log > np.median(logs) else "unacceptable" for log in logs]
    assert [one.label for one in result.predictions] == names
    gold = ["acceptable" if label else "unacceptable" for _, label in DEV]
    assert result.scores == compute_metrics(("matthews",), names, gold)


def test_the_train_threshold_is_the_best_on_the_training_split(bases, tmp_path):
    result = PromptEvaluator(cola(tmp_path, bases("gpt2"), "train")).evaluate()
    known = np.array(mean_log_probabilities(bases("gpt2"), [text for text, _ in TRAIN]))
    labels = [label for _, label in TRAIN]

    def metric(threshold: float) -> float:
        return compute_metrics(("matthews",), (known > threshold).astype(int).tolist(), labels)[
            "matthews"
        ]

    candidates = [-np.inf, *sorted(known)]
    best = max(candidates, key=metric)
    logs = mean_log_probabilities(bases("gpt2"), [text for text, _ in DEV])
    expected = ["acceptable" if log > best else "unacceptable" for log in logs]
    assert [one.label for one in result.predictions] == expected


@given(st.lists(st.tuples(st.floats(-9, 0), st.booleans()), min_size=2, max_size=60))
def test_no_other_threshold_is_better(pairs):
    scores = np.array([weight for weight, _ in pairs])
    labels = np.array([label for _, label in pairs])

    def metric(threshold: float) -> float:
        return float(np.mean((scores > threshold) == labels))

    found = metric(best_threshold(scores, metric))
    assert found == max(metric(at) for at in [-10.0, *scores])


@pytest.mark.parametrize("options", [PromptOptions(shots=2), PromptOptions(calibrated=True)])
def test_a_threshold_takes_no_demonstrations(bases, tmp_path, options):
    with pytest.raises(UsageError, match="takes no demonstrations and no calibration"):
        PromptEvaluator(cola(tmp_path, bases("gpt2"), "median")).evaluate(options)


def test_the_shipped_gpt1_prompts_are_the_papers():
    parts = {name: load_recipe(name).task.with_prompt("gpt1") for name in ("cola", "sst2", "race")}
    prompts = {name: part.build().prompt for name, part in parts.items()}
    row = {"sentence": "a fine film", "label": 1}
    example = parts["sst2"].build().example(row, "x")
    assert prompts["sst2"].question(example) == "a fine film very"
    assert prompts["sst2"].answer_texts(example) == (" negative", " positive")
    example = parts["cola"].build().example(row, "x")
    assert (prompts["cola"].question(example), prompts["cola"].normalization) == ("", "token")
    assert prompts["cola"].answer_texts(example) == ("a fine film",)
    row = {"article": "It rains.", "question": "Why?", "options": ["a", "b", "c"], "answer": "A"}
    example = parts["race"].build().example(row, "x")
    assert prompts["race"].question(example) == "It rains.\nWhy?"
    assert prompts["race"].answer_texts(example) == (" a", " b", " c")
    assert prompts["race"].normalization == "token"


RECIPE = """
task:
  format: {format}
  columns: {columns}
  labels: {labels}
  prompts: {{mine: {{text: "", answers: "{answers}", threshold: median}}}}
"""
TEXT = {"format": "classification", "columns": "{text: a, label: b}", "labels": "[x, y]"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": "{text}", "labels": "[x, y, z]"}, "a threshold needs two labels"),
        ({"answers": "{choice}"}, "must be a template over fields"),
        ({"answers": "yes"}, "must be a template over fields"),
        ({"answers": "{txt}"}, "unknown field 'txt'"),
    ],
)
def test_a_recipe_with_a_prompt_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe(RECIPE.format(**{**TEXT, **changes}))


def test_a_prompt_is_chosen_by_name(bases, tmp_path, capsys):
    recipe = cola(tmp_path, bases("gpt2"), "median")
    files = [f"data.{name}={getattr(recipe.data, name)}" for name in ("train", "evaluate")]
    words = ["prompt", "--task", "cola", "--base", str(bases("gpt2")), "--precision", "fp32"]
    words += ["--set", "data.path=null", *files, "--prompt", "gpt1"]
    assert main(words) == 0
    assert "matthews" in capsys.readouterr().out
    assert main([*words[:-1], "gpt2"]) == 2
    assert "no prompt 'gpt2'" in capsys.readouterr().err


def test_stsb_scores_are_expected_values_of_six_answers(shared, bases):
    changes = {"data.path": str(shared / "data" / "glue"), "data.limit": 12}
    changes |= {"base.path": str(bases("llama")), "train.precision": "fp32"}
    evaluator = PromptEvaluator(load_recipe("stsb", changes))
    result = evaluator.evaluate(PromptOptions(shots=1))
    assert set(result.scores) == {"pearson", "spearman"}
    assert len(result.predictions) == 12
    assert all(0 < one.label < 5 for one in result.predictions)
    encoder = PromptEncoder(evaluator.task, evaluator.answer_tokenizer, 96, Demonstrations([], 0))
    logs = evaluator.log_likelihoods(encoder.encode(evaluator.questions))
    odds = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    values = [one.label for one in evaluator.evaluate().predictions]
    assert values == pytest.approx((odds @ np.arange(6)).tolist(), rel=1e-5)
    assert len({example.label for example in evaluator.questions}) > 2
