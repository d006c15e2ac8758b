"""A task asked in words: how often a decoder that was never trained for it knows the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np

from finetune.data.examples import read_examples
from finetune.data.sources import open_rows
from finetune.distributed.setup import (
    Precision,
    choose_layout,
    choose_max_tokens_per_forward,
    choose_precision,
    create_accelerator,
)
from finetune.evaluation.evaluate import BatchConfig
from finetune.evaluation.intervals import Judge, bootstrap_interval
from finetune.evaluation.metrics import score
from finetune.models.pretrained import DEFAULT_CONTEXT, count_positions, load_language_model
from finetune.prompting import normalization
from finetune.prompting.answer_scorer import AnswerScorer
from finetune.prompting.contexts import find_boundary
from finetune.prompting.threshold import apply_threshold, best_threshold
from finetune.recipe.schema import Recipe
from task_formats import (
    Demonstrations,
    Example,
    Prediction,
    Prompt,
    PromptEncoder,
    Question,
    Range,
    Task,
    UsageError,
)
from task_formats.prompt_tokens import answer_values
from task_formats.prompts import Normalization

CONTENT_FREE = ("N/A", "[MASK]", "")
"""What stands for every field in a question without content (Zhao et al. 2021)."""


@dataclass(frozen=True)
class PromptOptions:
    """How the questions are asked."""

    shots: int = 0
    """Solved examples before every question."""
    seed: int = 0
    """Draws the solved examples."""
    shared: bool = False
    """The same solved examples for all questions, not some of its own for each."""
    calibrated: bool = False
    """Weigh each answer by how likely it is after a question without content."""
    normalization: Normalization | None = None
    """How log-likelihoods are normalised; without it, as the task's prompt says."""


class PromptResult(NamedTuple):
    """What came of asking all questions in one manner."""

    manner: PromptOptions
    scores: dict[str, float]
    """The task's metrics over the labelled questions."""
    intervals: dict[str, tuple[float, float]]
    """95 % of what other questions of the kind would have scored (bootstrap)."""
    predictions: list[Prediction]
    shown: float
    """Solved examples that stood before a question, on average: as many as fitted."""
    cut: int
    """Questions whose beginning did not fit."""
    precision: Precision
    """What products were made in. Only in fp32 the log-likelihoods are transformers' own to 1e-4:
    in bf16 they are up to a tenth of a nat off."""
    reads: Literal["probabilities", "log_probability", "score"]
    """What the scores of a prediction are: one per answer, or the one number that it was made of
    (`score`: its label)."""


class PromptEvaluator:
    """A decoder with a task's questions and solved examples."""

    def __init__(self, recipe: Recipe, task: Task | None = None, limit: int | None = None) -> None:
        """Loads and reads everything but the solved examples, which wait for a manner with shots.

        `limit` counts questions alone, `data.limit` the rows of every split. Raises UsageError
        where there is no prompt, no base, or no row.
        """
        self.recipe, self.task = recipe, recipe.task.resolve(task)
        self.precision = choose_precision(recipe.train.precision)
        accelerator = create_accelerator(self.precision)
        decoder, tokenizer = load_language_model(recipe.base.model_copy(update={"dropout": None}))
        asked, most = _named(recipe.data.evaluate, "evaluate"), _least(limit, recipe.data.limit)
        self.questions = self._read(asked, most, labelled=False)
        self._pool: list[Example] | None = None
        self.boundary = find_boundary(tokenizer)
        self._max_tokens = count_positions(decoder) or DEFAULT_CONTEXT
        layout = choose_layout(recipe.train, decoder, chooses=True)
        budget = choose_max_tokens_per_forward(recipe.train, decoder, accelerator.device)
        batch_config = BatchConfig(layout, tokenizer.pad_token_id or 0, budget)
        self._scorer = AnswerScorer(decoder.to(accelerator.device), batch_config, accelerator)

    def ask(self, manner: PromptOptions = PromptOptions()) -> PromptResult:
        """Asks every question of the evaluation split. UsageError for what has no meaning."""
        self._check(manner)
        pool = self.solved() if manner.shots else []
        demonstrations = Demonstrations(pool, manner.shots, manner.seed, manner.shared)
        encoder = PromptEncoder(self.task, self.boundary, self._max_tokens, demonstrations)
        questions = encoder.encode(self.questions)
        weights = self._weigh(encoder, self.questions, questions, manner)
        if encoder.prompt.threshold:
            threshold = self._find_threshold(encoder, weights[:, 0], manner)
            predictions = apply_threshold(self.task, questions, weights[:, 0], threshold)
        else:
            predictions = self._decide(questions, weights)
        scores, intervals = self._score(questions, predictions)
        return PromptResult(
            manner,
            scores,
            intervals,
            predictions,
            float(np.mean([question.shots for question in questions])),
            sum(question.cut > 0 for question in questions),
            self.precision,
            self._reads(),
        )

    def likelihoods(self, questions: Sequence[Question]) -> np.ndarray:
        """(N, K) log-likelihoods of the answers in nats; -inf where a question has fewer."""
        parts = [part for question in questions for part in question.parts]
        found = self._scorer.score(parts)
        table = np.full((len(questions), max(len(q.places) for q in questions)), -np.inf)
        first = 0
        for n, question in enumerate(questions):
            for k, (part, ending) in enumerate(question.places):
                table[n, k] = found[first + part, ending]
            first += len(question.parts)
        return table

    def _check(self, manner: PromptOptions) -> None:
        """A text that is its own answer has no solved examples, and no bias towards an answer."""
        prompt = self.task.prompt
        if prompt and prompt.threshold and (manner.shots or manner.calibrated):
            raise UsageError(
                "a prompt with a threshold is asked without solved examples or calibration",
                where="task.prompt.threshold",
                cure="Ask with --shots 0, or with another prompt.",
            )

    def _find_threshold(
        self, encoder: PromptEncoder, weights: np.ndarray, manner: PromptOptions
    ) -> float:
        """Of the (N,) weights of the questions, or the best one on the training split."""
        if encoder.prompt.threshold == "median":
            return float(np.median(weights))
        solved = self.solved()
        questions = encoder.encode(solved)
        known = self._weigh(encoder, solved, questions, manner)[:, 0]
        metric = self.task.metrics[0]

        def judge(threshold: float) -> float:
            return self._judge(questions, apply_threshold(self.task, questions, known, threshold))[
                metric
            ]

        return best_threshold(known, judge)

    def _weigh(
        self,
        encoder: PromptEncoder,
        examples: Sequence[Example],
        questions: list[Question],
        manner: PromptOptions,
    ) -> np.ndarray:
        """(N, K) comparable numbers, normalised and calibrated as the manner says."""
        scores = self.likelihoods(questions)
        how = manner.normalization or encoder.prompt.normalization
        if how == "prior":
            priors = self.likelihoods(encoder.encode_prior(examples))
            scores = normalization.against(scores, priors)
        normalize = partial(_normalize, how=how, questions=questions)
        if not manner.calibrated:
            return normalize(scores)
        empty = [
            normalize(self.likelihoods(encoder.encode_content_free(examples, questions, word)))
            for word in CONTENT_FREE
        ]
        return normalization.against(normalize(scores), normalization.mean_probability(empty))

    def _decide(self, questions: list[Question], scores: np.ndarray) -> list[Prediction]:
        if isinstance(self.task.labels, Range):
            values = answer_values(cast(Prompt, self.task.prompt))
            found = normalization.expected_value(scores, values)
            return [
                Prediction(question.id, float(value), (float(value),))
                for question, value in zip(questions, found, strict=True)
            ]
        return [
            self.task.labels.decode(question.id, row[: len(question.places)].tolist())
            for question, row in zip(questions, scores, strict=True)
        ]

    def _reads(self) -> Literal["probabilities", "log_probability", "score"]:
        if isinstance(self.task.labels, Range):
            return "score"
        threshold = self.task.prompt and self.task.prompt.threshold
        return "log_probability" if threshold else "probabilities"

    def _judge(
        self, questions: Sequence[Question], predictions: Sequence[Prediction]
    ) -> dict[str, float]:
        judge, predicted, gold = self._judged(questions, predictions)
        return judge(predicted, gold)

    def _score(
        self, questions: Sequence[Question], predictions: Sequence[Prediction]
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        judge, predicted, gold = self._judged(questions, predictions)
        return judge(predicted, gold), bootstrap_interval(judge, predicted, gold)

    def _judged(
        self, questions: Sequence[Question], predictions: Sequence[Prediction]
    ) -> tuple[Judge, np.ndarray, np.ndarray]:
        """The task's metrics as a function, and what it is about: labelled questions only."""
        labelled = [n for n, question in enumerate(questions) if question.label is not None]
        predicted = np.array([predictions[n].label for n in labelled])
        labels = [cast(float, questions[n].label) for n in labelled]
        gold = np.array([self.task.labels.name(label) for label in labels])

        def judge(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
            return score(
                self.task.metrics, predicted.tolist(), gold.tolist(), self.task.positive_class
            )

        return judge, predicted, gold

    def solved(self) -> list[Example]:
        """Labelled examples of the training split, read when they are first wanted."""
        if self._pool is None:
            split, most = _named(self.recipe.data.train, "train"), self.recipe.data.limit
            self._pool = self._read(split, most, labelled=True)
        return self._pool

    def _read(self, split: str, limit: int | None, *, labelled: bool) -> list[Example]:
        part = self.recipe.data
        rows = open_rows(part, split)
        examples, _ = read_examples(
            self.task,
            rows,
            split,
            labelled=labelled,
            on_bad_row=part.on_bad_row,
            limit=limit,
        )
        return list(examples)


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
    """Asks the evaluation split of a recipe with every number of shots and every seed, in turn.

    `limit` asks its first rows alone. Zero shots draw nothing, so they are asked once. Raises
    UsageError for whatever does not fit.
    """
    asker = PromptEvaluator(recipe, task, limit)
    for count in shots:
        for seed in seeds if count else seeds[:1]:
            yield asker.ask(PromptOptions(count, seed, shared, calibrated, normalization))


def _normalize(scores: np.ndarray, how: Normalization, questions: list[Question]) -> np.ndarray:
    if how == "token":
        return normalization.per_token(scores, questions)
    return normalization.per_byte(scores, questions) if how == "byte" else scores


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _named(split: str | None, role: str) -> str:
    if split is None:
        raise UsageError(
            f"the recipe names no {role} split", where=f"data.{role}", cure="Name a split or file."
        )
    return split
