"""GPT-1's own ways to ask without training, and scores by the words that stand for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.cli import main
from finetune.evaluation.metrics import score
from finetune.prompting import PromptEvaluator, PromptOptions
from finetune.prompting.threshold import best_threshold
from finetune.recipe.loading import load_recipe, parse_recipe
from finetune.recipe.schema import Recipe
from task_formats import Demonstrations, PromptEncoder, UsageError

TRAIN = [("it rained all night", 1), ("rained it night all", 0), ("he is late", 1)]
TRAIN += [("late he she is", 0), ("a man rides a horse", 1), ("horse a a rides", 0)]
DEV = [("the street is wet", 1), ("wet the is street", 0), ("she found it", 1), ("it it", 0)]


def cola(folder: Path, base: Path, threshold: str) -> Recipe:
    """The shipped recipe on rows of our own, asked in GPT-1's way."""
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


def mean_logs(base: Path, texts: list[str]) -> list[float]:
    """Mean log-probability a token of each text after the end-of-text token, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    found = []
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].double().log_softmax(-1)
        found.append(float(logs.gather(1, ids[0, 1:, None]).mean()))
    return found


def test_cola_is_parted_where_half_of_the_sentences_are_likelier(bases, tmp_path):
    found = PromptEvaluator(cola(tmp_path, bases("gpt2"), "median")).ask()
    logs = mean_logs(bases("gpt2"), [text for text, _ in DEV])
    assert [one.scores[0] for one in found.predictions] == pytest.approx(logs, rel=1e-5)
    names = ["acceptable" if log > np.median(logs) else "unacceptable" for log in logs]
    assert [one.label for one in found.predictions] == names
    gold = ["acceptable" if label else "unacceptable" for _, label in DEV]
    assert found.scores == score(("matthews",), names, gold)


def test_colas_threshold_is_the_best_on_the_training_split(bases, tmp_path):
    found = PromptEvaluator(cola(tmp_path, bases("gpt2"), "train")).ask()
    known = np.array(mean_logs(bases("gpt2"), [text for text, _ in TRAIN]))
    labels = [label for _, label in TRAIN]

    def judge(threshold: float) -> float:
        return score(("matthews",), (known > threshold).astype(int).tolist(), labels)["matthews"]

    candidates = [-np.inf, *sorted(known)]
    best = max(candidates, key=judge)
    logs = mean_logs(bases("gpt2"), [text for text, _ in DEV])
    expected = ["acceptable" if log > best else "unacceptable" for log in logs]
    assert [one.label for one in found.predictions] == expected


@given(st.lists(st.tuples(st.floats(-9, 0), st.booleans()), min_size=2, max_size=60))
def test_no_threshold_is_better(pairs):
    weights = np.array([weight for weight, _ in pairs])
    labels = np.array([label for _, label in pairs])

    def judge(threshold: float) -> float:
        return float(np.mean((weights > threshold) == labels))

    found = judge(best_threshold(weights, judge))
    assert found == max(judge(at) for at in [-10.0, *weights])


@pytest.mark.parametrize("manner", [PromptOptions(shots=2), PromptOptions(calibrated=True)])
def test_a_threshold_takes_no_solved_examples(bases, tmp_path, manner):
    with pytest.raises(UsageError, match="without solved examples or calibration"):
        PromptEvaluator(cola(tmp_path, bases("gpt2"), "median")).ask(manner)


def test_the_shipped_heuristics_are_gpt1s():
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
        ({"answers": "{text}", "labels": "[x, y, z]"}, "a threshold parts two labels"),
        ({"answers": "{choice}"}, "is no text of the fields"),
        ({"answers": "yes"}, "is no text of the fields"),
        ({"answers": "{txt}"}, "names 'txt'"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_the_recipe(changes, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe(RECIPE.format(**{**TEXT, **changes}))


def test_a_prompt_is_chosen_by_name(bases, tmp_path, capsys):
    recipe = cola(tmp_path, bases("gpt2"), "median")
    files = [f"data.{name}={getattr(recipe.data, name)}" for name in ("train", "evaluate")]
    words = ["ask", "--task", "cola", "--base", str(bases("gpt2")), "--precision", "fp32"]
    words += ["--set", "data.path=null", *files, "--prompt", "gpt1"]
    assert main(words) == 0
    assert "matthews" in capsys.readouterr().out
    assert main([*words[:-1], "gpt2"]) == 2
    assert "no prompt 'gpt2'" in capsys.readouterr().err


def test_stsb_is_a_mean_of_six_words_on_real_rows(shared, bases):
    """Of the shipped recipe: a score between 0 and 5 for every pair, under the model's own odds."""
    changes = {"data.path": str(shared / "data" / "glue"), "data.limit": 12}
    changes |= {"base.path": str(bases("llama")), "train.precision": "fp32"}
    asker = PromptEvaluator(load_recipe("stsb", changes))
    found = asker.ask(PromptOptions(shots=1))
    assert set(found.scores) == {"pearson", "spearman"}
    assert len(found.predictions) == 12
    assert all(0 < one.label < 5 for one in found.predictions)
    # By hand, from the six log-likelihoods of every question.
    encoder = PromptEncoder(asker.task, asker.boundary, 96, Demonstrations([], 0))
    logs = asker.likelihoods(encoder.encode(asker.questions))
    odds = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    values = [one.label for one in asker.ask().predictions]
    assert values == pytest.approx((odds @ np.arange(6)).tolist(), rel=1e-5)
    assert len({example.label for example in asker.questions}) > 2
