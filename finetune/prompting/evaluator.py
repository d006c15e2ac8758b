"""Zero- and few-shot evaluation: scores a task's answers with a decoder, without training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.held_out import HeldOutDraw
from finetune.data.splits import read_split
from finetune.distributed.setup import (
    Precision,
    choose_batch_config,
    choose_precision,
    create_accelerator,
)
from finetune.evaluation.metrics import bootstrap_interval, score_predictions
from finetune.models.pretrained import DEFAULT_CONTEXT, count_positions, load_language_model
from finetune.models.task_tokens import find_special_token, find_start_tokens, tokenize
from finetune.prompting.answer_scorer import AnswerScorer
from finetune.prompting.normalization import (
    apply_threshold,
    best_threshold,
    expected_value,
    log_ratio,
    mean_log_probability,
    normalize_lengths,
)
from finetune.recipe.schema import Recipe
from task_formats import (
    AnswerTokenizer,
    Demonstrations,
    Example,
    Prediction,
    PromptEncoder,
    Question,
    Range,
    Task,
    UsageError,
)
from task_formats.prompt_tokens import answer_values
from task_formats.prompts import Normalization

CONTENT_FREE_INPUTS = ("N/A", "[MASK]", "")
"""The fields of content-free questions, for calibration (Zhao et al. 2021, section 4)."""

ScoreKind = Literal["probabilities", "log_probability", "score"]


@dataclass(frozen=True)
class PromptOptions:
    """How questions are prompted."""

    shots: int = 0
    """Demonstrations before every question."""
    seed: int = 0
    """Random seed of the demonstrations."""
    shared: bool = False
    """The same demonstrations for all questions, instead of a separate draw for each."""
    calibrated: bool = False
    """Contextual calibration (Zhao et al. 2021)."""
    normalization: Normalization | None = None
    """Normalization of log-likelihoods; None takes that of the task's prompt."""


class PromptResult(NamedTuple):
    """The evaluation of all questions with one set of options."""

    options: PromptOptions
    scores: dict[str, float]
    """The task's metrics over the labelled questions."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap confidence intervals over questions."""
    predictions: list[Prediction]
    mean_shots: float
    """Demonstrations that fitted before a question, on average."""
    truncated: int
    """Questions whose beginning did not fit."""
    precision: Precision
    """Number format of the forward passes. In fp32 log-likelihoods equal those of transformers to
    1e-4 nats; in bf16 they differ by up to 0.1 nats."""
    score_kind: ScoreKind
    """What `Prediction.scores` holds: a probability per answer, the log-probability compared with
    the threshold, or the predicted score itself."""


class PromptEvaluator:
    """A decoder with the questions of a task."""

    def __init__(self, recipe: Recipe, task: Task | None = None, limit: int | None = None) -> None:
        """Loads the decoder and at most `limit` questions; `recipe.data.limit` limits every split.

        `task` replaces the recipe's task, for tasks defined in Python.
        """
        self.recipe, self.task = recipe, recipe.task.resolve(task)
        self.precision = choose_precision(recipe.train.precision)
        accelerator = create_accelerator(self.precision)
        decoder, tokenizer = load_language_model(recipe.base.model_copy(update={"dropout": None}))
        limit = min(filter(None, (limit, recipe.data.limit)), default=None)
        self._draw = HeldOutDraw(recipe.data, self.task)
        self.questions = read_split(
            self.task, recipe.data, "evaluate", labelled=False, limit=limit, draw=self._draw
        )
        self.answer_tokenizer = build_answer_tokenizer(tokenizer)
        self._max_tokens = count_positions(decoder) or DEFAULT_CONTEXT
        batch_config = choose_batch_config(
            decoder,
            accelerator,
            tokenizer.pad_token_id or 0,
            layout=recipe.train.layout,
            max_tokens=recipe.train.tokens_per_forward,
        )
        self._scorer = AnswerScorer(decoder.to(accelerator.device), batch_config, accelerator)

    @cached_property
    def demonstration_pool(self) -> list[Example]:
        """Labelled examples of the training split."""
        data = self.recipe.data
        return read_split(self.task, data, "train", limit=data.limit, draw=self._draw)

    def evaluate(self, options: PromptOptions = PromptOptions()) -> PromptResult:
        """Predicts every question of the evaluation split and scores the predictions.

        Raises:
            UsageError: The task has no prompt or one that the options do not fit, an answer is
                longer than the decoder's context, or the training split has too few rows.
        """
        prompt = self.task.prompt
        if prompt and prompt.threshold and (options.shots or options.calibrated):
            what = "a prompt with a threshold takes no demonstrations and no calibration"
            raise UsageError(what, cure="Use --shots 0 without --calibrated, or another prompt.")
        pool = self.demonstration_pool if options.shots else []
        demonstrations = Demonstrations(pool, options.shots, options.seed, options.shared)
        encoder = PromptEncoder(self.task, self.answer_tokenizer, self._max_tokens, demonstrations)
        questions = encoder.encode(self.questions)
        answer_scores = self._answer_scores(encoder, self.questions, questions, options)
        score_kind: ScoreKind
        if encoder.prompt.threshold:
            score_kind, first_scores = "log_probability", answer_scores[:, 0]
            threshold = self._find_threshold(encoder, first_scores, options)
            predictions = apply_threshold(self.task, questions, first_scores, threshold)
        elif isinstance(self.task.labels, Range):
            score_kind = "score"
            values = expected_value(answer_scores, answer_values(encoder.prompt)).tolist()
            predictions = [
                Prediction(question.id, value, (value,))
                for question, value in zip(questions, values, strict=True)
            ]
        else:
            score_kind = "probabilities"
            predictions = [
                self.task.labels.decode(question.id, row[: len(question.answer_positions)].tolist())
                for question, row in zip(questions, answer_scores, strict=True)
            ]
        predicted, gold = self._labelled(questions, predictions)
        return PromptResult(
            options,
            self._metrics(predicted, gold),
            bootstrap_interval(self._metrics, predicted, gold),
            predictions,
            mean_shots=float(np.mean([question.shots for question in questions])),
            truncated=sum(question.truncated_tokens > 0 for question in questions),
            precision=self.precision,
            score_kind=score_kind,
        )

    def log_likelihoods(self, questions: Sequence[Question]) -> np.ndarray:
        """(N, K) log-likelihoods of the answers in nats; -inf where a question has fewer."""
        parts = [part for question in questions for part in question.groups]
        scores = self._scorer.log_likelihoods(parts)
        table = np.full((len(questions), max(len(q.answer_positions) for q in questions)), -np.inf)
        first = 0
        for n, question in enumerate(questions):
            for k, (part, ending) in enumerate(question.answer_positions):
                table[n, k] = scores[first + part, ending]
            first += len(question.groups)
        return table

    def _answer_scores(
        self,
        encoder: PromptEncoder,
        examples: Sequence[Example],
        questions: list[Question],
        options: PromptOptions,
    ) -> np.ndarray:
        """(N, K) log-likelihoods after normalization and calibration."""
        scores = self.log_likelihoods(questions)
        kind = options.normalization or encoder.prompt.normalization
        if kind == "prior":
            scores = log_ratio(scores, self.log_likelihoods(encoder.encode_prior(examples)))
        normalize = partial(normalize_lengths, kind=kind, questions=questions)
        if not options.calibrated:
            return normalize(scores)
        content_free = [
            normalize(self.log_likelihoods(encoder.encode_content_free(examples, questions, text)))
            for text in CONTENT_FREE_INPUTS
        ]
        return log_ratio(normalize(scores), mean_log_probability(content_free))

    def _find_threshold(
        self, encoder: PromptEncoder, scores: np.ndarray, options: PromptOptions
    ) -> float:
        """The median of the questions' (N,) scores, or the best threshold on the training split."""
        if encoder.prompt.threshold == "median":
            return float(np.median(scores))
        examples, metric = self.demonstration_pool, self.task.metrics[0]
        questions = encoder.encode(examples)
        train_scores = self._answer_scores(encoder, examples, questions, options)[:, 0]

        def evaluate_threshold(threshold: float) -> float:
            predictions = apply_threshold(self.task, questions, train_scores, threshold)
            return self._metrics(*self._labelled(questions, predictions))[metric]

        return best_threshold(train_scores, evaluate_threshold)

    def _labelled(
        self, questions: Sequence[Question], predictions: Sequence[Prediction]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and true labels of the questions that have a label."""
        pairs = [
            (prediction, question.label)
            for question, prediction in zip(questions, predictions, strict=True)
            if question.label is not None
        ]
        return np.array([p for p, _ in pairs]), np.array([label for _, label in pairs])

    def _metrics(self, predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return score_predictions(self.task, predicted.tolist(), gold.tolist())


def evaluate_prompts(
    recipe: Recipe,
    shots: Sequence[int] = (0,),
    seeds: Sequence[int] = (0,),
    *,
    task: Task | None = None,
    limit: int | None = None,
    shared: bool = False,
    calibrated: bool = False,
    normalization: Normalization | None = None,
) -> Iterator[PromptResult]:
    """Yields the result of every number of shots with every seed; 0 shots are evaluated once.

    `task` and `limit` are those of `PromptEvaluator`, the other options those of `PromptOptions`.
    Raises UsageError as `PromptEvaluator` and its `evaluate` do.
    """
    evaluator = PromptEvaluator(recipe, task, limit)
    for count in shots:
        for seed in seeds if count else seeds[:1]:
            yield evaluator.evaluate(PromptOptions(count, seed, shared, calibrated, normalization))


def build_answer_tokenizer(tokenizer: PreTrainedTokenizerBase) -> AnswerTokenizer:
    """Returns how contexts and answers are tokenized, as in lm-evaluation-harness.

    Tokens that the tokenizer puts before every text (llama's <s>) start every context. An empty
    context is the beginning-of-text token, or else the end-of-text token.
    """
    empty = find_special_token(tokenizer, "bos", "eos")
    start = tuple(find_start_tokens(tokenizer))
    return AnswerTokenizer(partial(tokenize, tokenizer), start, empty or 0)
