"""GPT-1's zero-shot heuristics (section 5)."""

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
from task_formats import UsageError

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
        names = (known > threshold).astype(int).tolist()
        return compute_metrics(("matthews",), names, labels)["matthews"]

    best = max([-np.inf, *sorted(known)], key=metric)
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
    race = {"article": "It rains.", "question": "Why?", "options": ["a", "b", "c"], "answer": "A"}
    sentence = {"sentence": "a fine film", "label": 1}
    for name, row, question, answers, normalization in (
        ("sst2", sentence, "a fine film very", (" negative", " positive"), "none"),
        ("cola", sentence, "", ("a fine film",), "token"),
        ("race", race, "It rains.\nWhy?", (" a", " b", " c"), "token"),
    ):
        task = load_recipe(name).task.with_prompt("gpt1").build()
        example = task.example(row, "x")
        assert task.prompt.question(example) == question
        assert task.prompt.answer_texts(example) == answers
        assert task.prompt.normalization == normalization


@pytest.mark.parametrize(
    ("answers", "labels", "message"),
    [
        ("{text}", ["x", "y", "z"], "a threshold needs two labels"),
        ("{choice}", ["x", "y"], "must be a template over fields"),
        ("{txt}", ["x", "y"], "unknown field 'txt'"),
    ],
)
def test_a_recipe_with_a_prompt_that_does_not_fit_is_refused(answers, labels, message):
    prompts = {"mine": {"text": "", "answers": answers, "threshold": "median"}}
    columns = {"text": "a", "label": "b"}
    task = {"format": "classification", "columns": columns, "labels": labels, "prompts": prompts}
    with pytest.raises(UsageError, match=message):
        parse_recipe(json.dumps({"task": task}))


def test_a_prompt_is_chosen_by_name(bases, tmp_path, capsys):
    recipe = cola(tmp_path, bases("gpt2"), "median")
    files = [f"data.{name}={getattr(recipe.data, name)}" for name in ("train", "evaluate")]
    words = ["prompt", "--task", "cola", "--base", str(bases("gpt2")), "--precision", "fp32"]
    words += ["--set", "data.path=null", *files, "--prompt", "gpt1"]
    assert main(words) == 0
    assert "matthews" in capsys.readouterr().out
    assert main([*words[:-1], "gpt2"]) == 2
    assert "no prompt 'gpt2'" in capsys.readouterr().err
