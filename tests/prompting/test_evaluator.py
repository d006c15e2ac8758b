"""Zero- and few-shot evaluation: normalization, calibration, scores and errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.evaluation.metrics import bootstrap_interval, compute_metrics
from finetune.prompting import PromptEvaluator, PromptOptions, evaluate_prompts, normalization
from finetune.prompting.evaluator import build_answer_tokenizer
from finetune.recipe.schema import Recipe
from task_formats import Encoded, Question, UsageError

FACTS = [
    ("A man rides a horse.", "An animal is there.", "yes"),
    ("It rained all night.", "The street is dry.", "no"),
    ("She found the letter.", "The letter was found.", "yes"),
    ("Prices rose in 1998.", "Nothing changed.", "no"),
    ("Nobody had read it.", "Everybody read it.", "no"),
    ("The report is old.", "There is a report.", "yes"),
    ("He was late again.", "He came late.", "yes"),
    ("The river is wet.", "The grass is blue.", "no"),
]


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [dict(zip(("one", "two", "label"), row, strict=True)) for row in FACTS]
    for name, part in (("train", rows), ("dev", rows[1:6])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def entailment(data: Path, base: Path) -> Recipe:
    prompt = {
        "text": "{premise} {hypothesis} True?",
        "answers": {"yes": " True, it is", "no": " No"},
        "separator": "\n",
    }
    task = {
        "format": "entailment",
        "columns": {"premise": "one", "hypothesis": "two", "label": "label"},
        "labels": ["no", "yes"],
        "metrics": ["accuracy", "f1"],
        "prompt": prompt,
    }
    files = {"train": str(data / "train.jsonl"), "evaluate": str(data / "dev.jsonl")}
    base, train = {"path": str(base)}, {"precision": "fp32"}
    return Recipe.model_validate({"task": task, "base": base, "data": files, "train": train})


def log_likelihood(base: Path, context: str, answer: str) -> tuple[float, int]:
    """The answer's log-likelihood and number of tokens, computed with transformers."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = tokenizer(context)["input_ids"]
    ids = torch.tensor([tokenizer(context + answer)["input_ids"]])
    with torch.no_grad():
        logs = model(ids).logits[0].double().log_softmax(-1)
    targets = range(len(before), ids.shape[1])
    return sum(float(logs[t - 1, ids[0, t]]) for t in targets), len(targets)


def answer_scores(base: Path, context: str, kind: str) -> list[float]:
    """Scores of the answers no and yes, normalized as in GPT-3, section 2.4."""
    scores = []
    for answer in (" No", " True, it is"):
        value, tokens = log_likelihood(base, context, answer)
        prior, _ = log_likelihood(base, "Answer:", answer)
        lengths = {"none": 1, "token": tokens, "byte": len(answer.strip()), "prior": 1}
        scores.append(value / lengths[kind] - (prior if kind == "prior" else 0))
    return scores


def softmax(weights) -> np.ndarray:
    return np.exp(weights) / np.exp(weights).sum()


@pytest.mark.parametrize("kind", ["none", "token", "byte", "prior"])
def test_zero_shot_predictions_match_transformers(bases, data, kind):
    base = bases("gpt2")
    result = PromptEvaluator(entailment(data, base)).evaluate(PromptOptions(normalization=kind))
    expected = []
    for (premise, hypothesis, _), prediction in zip(FACTS[1:6], result.predictions, strict=True):
        weights = answer_scores(base, f"{premise} {hypothesis} True?", kind)
        assert prediction.scores == pytest.approx(softmax(weights), rel=1e-4)
        expected.append(("no", "yes")[int(np.argmax(weights))])
    assert [prediction.label for prediction in result.predictions] == expected
    gold = [label for _, _, label in FACTS[1:6]]
    assert result.scores == compute_metrics(("accuracy", "f1"), expected, gold, "yes")
    assert result.predictions[2].id == f"{data / 'dev.jsonl'}/2"
    assert (result.mean_shots, result.truncated) == (0, 0)


def test_demonstrations_come_from_the_training_split_without_the_question_itself(bases, data):
    evaluator = PromptEvaluator(entailment(data, bases("gpt2")))
    result = evaluator.evaluate(PromptOptions(shots=1, seed=3))
    alone = evaluator.evaluate(PromptOptions())
    assert result.mean_shots == 1
    assert [p.scores for p in result.predictions] != [p.scores for p in alone.predictions]
    assert evaluator.evaluate(PromptOptions(shots=1, seed=3)).predictions == result.predictions
    seeds = {tuple(evaluator.evaluate(PromptOptions(1, seed)).predictions) for seed in range(4)}
    assert len(seeds) > 1
    # Every evaluation row is a training row, too, so 9 are needed for 8 shots.
    with pytest.raises(UsageError, match="8 shots need 9 different labelled examples"):
        evaluator.evaluate(PromptOptions(shots=8))


def test_a_limit_counts_questions_but_not_demonstrations(bases, data):
    recipe = entailment(data, bases("gpt2"))
    whole = PromptEvaluator(recipe).evaluate(PromptOptions(shots=4))
    (first,) = evaluate_prompts(recipe, [4], limit=2)
    assert [p.id for p in first.predictions] == [p.id for p in whole.predictions[:2]]
    for one, other in zip(first.predictions, whole.predictions[:2], strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 3})})
    assert len(PromptEvaluator(few, limit=4).questions) == 3
    with pytest.raises(UsageError, match="and there are 3"):
        PromptEvaluator(few, limit=2).evaluate(PromptOptions(shots=4))


def test_calibration_divides_by_the_answers_to_content_free_questions(bases, data):
    base = bases("gpt2")
    result = PromptEvaluator(entailment(data, base)).evaluate(PromptOptions(calibrated=True))
    empty = [
        softmax(answer_scores(base, f"{word} {word} True?", "none"))
        for word in ("N/A", "[MASK]", "")
    ]
    for (premise, hypothesis, _), prediction in zip(FACTS[1:6], result.predictions, strict=True):
        weights = answer_scores(base, f"{premise} {hypothesis} True?", "none")
        shares = softmax(weights - np.log(np.mean(empty, 0)))
        assert prediction.scores == pytest.approx(shares, rel=1e-4)


def test_a_score_is_the_expected_value_of_its_answers(bases, data):
    values = entailment(data, bases("gpt2")).model_dump()
    rows = [{"one": "a horse", "two": "the river", "label": 1.5}]
    rows += [{"one": f"the {w}", "two": "a horse", "label": 4} for w in ("grass", "street")]
    (data / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values["task"] |= {
        "format": "similarity",
        "columns": {"first": "one", "second": "two", "label": "label"},
        "labels": None,
        "range": (0, 5),
        "metrics": ("pearson", "mse"),
        "prompt": {"text": "{first} {second}", "answers": {"5": " same", "0": " not", "2": " so"}},
    }
    result = PromptEvaluator(Recipe.model_validate(values)).evaluate()
    context = "a horse the river"
    logs = [log_likelihood(bases("gpt2"), context, word)[0] for word in (" not", " so", " same")]
    value = float(softmax(logs) @ [0, 2, 5])
    assert result.predictions[0].label == pytest.approx(value, rel=1e-4)
    assert set(result.scores) == {"pearson", "mse"}


def test_every_number_of_shots_is_evaluated_with_every_seed_and_zero_shots_once(bases, data):
    recipe = entailment(data, bases("llama"))
    results = list(evaluate_prompts(recipe, shots=(0, 1, 2), seeds=(0, 1)))
    options = [(result.options.shots, result.options.seed) for result in results]
    assert options == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    for result in results:
        assert set(result.scores) == {"accuracy", "f1"}
        low, high = result.intervals["accuracy"]
        assert 0 <= low <= result.scores["accuracy"] <= high <= 1


def test_demonstrations_that_do_not_fit_are_dropped_and_long_questions_truncated(bases, data):
    recipe, options = entailment(data, bases("gpt2")), PromptOptions(shots=6, shared=True)
    assert 0 <= PromptEvaluator(recipe).evaluate(options).mean_shots < 6
    row = {"one": "word " * 120, "two": "x", "label": "no"}
    (data / "dev.jsonl").write_text(json.dumps(row) + "\n")
    assert PromptEvaluator(recipe).evaluate().truncated == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"prompt": None}}, "the task has no prompt"),
        ({"data": {"evaluate": None}}, "data.evaluate is not set"),
        ({"base": {"path": "./nowhere"}}, "no such folder"),
    ],
)
def test_errors_name_the_cause(bases, data, change, message):
    values = entailment(data, bases("gpt2")).model_dump()
    for part, keys in change.items():
        values[part] |= keys
    with pytest.raises(UsageError, match=message):
        list(evaluate_prompts(Recipe.model_validate(values)))


@pytest.mark.parametrize(
    ("family", "start", "empty"),
    [("gpt2", None, "<|endoftext|>"), ("llama", "<s>", "<s>"), ("qwen3", None, "<|im_end|>")],
)
def test_a_context_starts_with_the_tokenizers_special_tokens(bases, family, start, empty):
    tokenizer = AutoTokenizer.from_pretrained(bases(family))
    answers = build_answer_tokenizer(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(answers.start_ids))
    assert names == ([start] if start else [])
    # What a tokenizer puts after a text does not matter.
    end = tokenizer.eos_token
    single = f"{start} $A {end}" if start else f"$A {end}"
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in {start or end, end}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=special
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert build_answer_tokenizer(tokenizer).start_ids == answers.start_ids
    assert tokenizer.convert_ids_to_tokens(answers.empty_id) == empty


SCORES = st.lists(st.floats(-50, -0.01), min_size=2, max_size=5)


@given(SCORES, st.integers(1, 3))
def test_normalizations_match_their_formulas(values, absent):
    width, short = len(values) + absent, len(values)
    table = np.array([[*values, *[-np.inf] * absent], [*values, *[-1.0] * absent]])
    part = Encoded("x", (1,), tuple((1,) * (k + 1) for k in range(width)))
    places, sizes = [(0, k) for k in range(width)], [3 * (k + 1) for k in range(width)]
    questions = [
        Question("x", 0, (part,), tuple(places[:n]), tuple(sizes[:n]), 0) for n in (short, width)
    ]
    per_token, per_byte = (
        normalization.normalize_lengths(table, questions, kind) for kind in ("token", "byte")
    )
    for k, value in enumerate(values):
        assert per_token[0, k] == value / (k + 1)
        assert per_byte[0, k] == value / (3 * (k + 1))
    assert np.all(per_token[0, short:] == -np.inf)
    ratio = normalization.log_ratio(table, table)
    assert np.all(ratio[0, :short] == 0)
    assert np.all(ratio[0, short:] == -np.inf)
    shares = np.exp(normalization.log_softmax(table))
    assert shares.sum(1) == pytest.approx([1, 1])
    mean = normalization.mean_log_probability([table, table, table])
    assert np.exp(mean) == pytest.approx(shares)
    value = normalization.expected_value(table, range(width))
    assert value == pytest.approx([sum(k * s for k, s in enumerate(row)) for row in shares])


def test_a_bootstrap_interval_is_that_of_the_normal_approximation():
    predicted = np.array(["a"] * 80 + ["b"] * 20)
    gold = np.array(["a"] * 100)

    def metric(one, other):
        return {"accuracy": float(np.mean(one == other))}

    low, high = bootstrap_interval(metric, predicted, gold, draws=2000)["accuracy"]
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 100)
    assert low == pytest.approx(0.8 - spread, abs=0.02)
    assert high == pytest.approx(0.8 + spread, abs=0.02)
    assert bootstrap_interval(metric, gold, gold)["accuracy"] == (1.0, 1.0)
