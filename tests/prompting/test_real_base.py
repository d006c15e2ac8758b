"""Log-likelihoods of a real pretrained base against lm-evaluation-harness' definition of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.prompting import PromptEvaluator, PromptOptions
from finetune.recipe.schema import Recipe
from task_formats import Demonstrations, Prompt, PromptEncoder

pytestmark = pytest.mark.slow

REQUESTS = [
    ("The capital of France is", ["Paris", "London", "a city on the Seine in the north."]),
    ("Question: Which gas do plants take in?\nAnswer:", ["carbon dioxide", "oxygen", "gold"]),
    ("In 2024 the price was 1,999", ["dollars", ".50", "999"]),
    ("Zwölf Boxkämpfer jagen Viktor quer über den", ["großen Sylter Deich", "日本語 🙂"]),
    ("A story. " * 40 + "And then", ["it ended", "it went on for years"]),
]
"""Contexts with their answers. The last one is longer than the 64 tokens that are read."""
PROMPTS = {
    "blank before the answer": Prompt("{context}", " {choice}"),
    "blank at the end of the context": Prompt("{context} ", "{choice}"),
    "no blank": Prompt("{context}", "{choice}"),
    "no context": Prompt("", " {choice}"),
}
MAX_TOKENS = 64


def harness_log_likelihood(model, tokenizer, context: str, answer: str) -> float:
    """The log-likelihood of a request as lm-evaluation-harness 0.4 defines it, one at a time."""
    stripped = context.rstrip()
    before = tokenizer(stripped)["input_ids"] if stripped else []
    targets = tokenizer(context + answer)["input_ids"][len(before) :]
    # An empty context is the token at the beginning of texts.
    sequence = ((before or [tokenizer.bos_token_id]) + targets)[-(MAX_TOKENS + 1) :]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence[:-1]])).logits[0]
    table = logits[-len(targets) :].double().log_softmax(-1)
    return float(table[torch.arange(len(targets)), torch.tensor(targets)].sum())


@pytest.fixture(scope="module")
def evaluator(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> PromptEvaluator:
    file = tmp_path_factory.mktemp("data") / "requests.jsonl"
    rows = ({"context": c, "answers": answers, "label": "A"} for c, answers in REQUESTS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "format": "multiple_choice",
        "columns": {"context": "context", "choices": "answers", "label": "label"},
        "labels": ["A", "B", "C"],
        "prompt": {"text": "{context}", "answers": " {choice}"},
    }
    sections = {"base": {"path": smollm2}, "data": {"evaluate": str(file)}}
    sections["train"] = {"precision": "fp32"}
    return PromptEvaluator(Recipe.model_validate({"task": task, **sections}))


@pytest.fixture(scope="module")
def model(smollm2: str):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_log_likelihoods_are_those_of_the_harness(
    prompt: str, evaluator: PromptEvaluator, model, smollm2: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    task = replace(evaluator.task, prompt=PROMPTS[prompt])
    encoder = PromptEncoder(task, evaluator.answer_tokenizer, MAX_TOKENS, Demonstrations([], 0))
    questions = encoder.encode(evaluator.questions)
    is_cut = [question.truncated_tokens > 0 for question in questions]
    assert is_cut == [*[False] * (len(REQUESTS) - 1), prompt != "no context"]
    found = evaluator.log_likelihoods(questions)
    for row, example in zip(found, evaluator.questions, strict=True):
        context, answers = encoder.render(example)
        expected = [harness_log_likelihood(model, tokenizer, context, a) for a in answers]
        np.testing.assert_allclose(row[: len(answers)], expected, rtol=0, atol=1e-4)


def test_the_base_knows_the_capital_of_france(evaluator: PromptEvaluator) -> None:
    first = evaluator.evaluate(PromptOptions()).predictions[0]
    assert first.label == "A"
    assert first.scores[0] > 10 * first.scores[1]
