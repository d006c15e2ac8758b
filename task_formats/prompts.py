"""Prompts: a task as a question in words, and the words of each answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from task_formats import templates
from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Example
from task_formats.formats import CHOICE
from task_formats.labels import Labels, Range

Normalization = Literal["none", "token", "byte", "prior"]
Threshold = Literal["train", "median"]


@dataclass(frozen=True)
class Prompt:
    """A question as a template, and answers that are compared by their likelihood.

    Args:
        text: The question, a template over fields.
        answers: Label name to words; for a score, some of its values to words ("0", "2.5"); or one
            template with `{choice}`. With a threshold, one template over fields.
        separator: Text between demonstrations.
        normalization: How log-likelihoods are normalized (GPT-3, section 2.4); "prior" divides by
            p(answer | `prior`).
        prior: The context of the unconditional probability.
        threshold: For two labels and one answer: the second label is predicted if the answer's
            log-likelihood exceeds a threshold (GPT-1, section 5, for CoLA). "train" takes the best
            threshold on the training split, "median" the median of the questions.
    """

    text: str
    answers: Mapping[str, str] | str
    separator: str = "\n\n"
    normalization: Normalization = "none"
    prior: str = "Answer: "
    threshold: Threshold | None = None
    fields: frozenset[str] = field(init=False)
    """The fields that the templates read."""

    def __post_init__(self) -> None:
        names = templates.field_names(self.answers) if isinstance(self.answers, str) else ()
        if not self.answers:
            raise UsageError("a prompt needs answers", cure="Give a word for every label.")
        if self.threshold and (not names or CHOICE in names):
            what = f"task.prompt.answers {self.answers!r} must be a template over fields"
            raise UsageError(what, cure='With a threshold write answers: "{text}".')
        if not self.threshold and isinstance(self.answers, str) and CHOICE not in names:
            what = f"task.prompt.answers {self.answers!r} is a text without {{choice}}"
            raise UsageError(what, cure='Write answers: " {choice}", or a word for every label.')
        read = {*templates.field_names(self.text), *(names if self.threshold else ())}
        object.__setattr__(self, "fields", frozenset(read))

    def bind(self, is_multiple_choice: bool, labels: Labels, fields: Sequence[str]) -> "Prompt":
        """Returns the prompt, if it fits the task, with its answers in the order of the labels."""
        for name in sorted(self.fields - set(fields)):
            raise _mismatch(f"unknown field {name!r}", suggest(name, fields))
        if self.threshold:
            if is_multiple_choice or isinstance(labels, Range) or labels.num_outputs != 2:
                raise _mismatch("a threshold needs two labels", "Remove task.prompt.threshold.")
            return self
        if is_multiple_choice != isinstance(self.answers, str):
            cure = 'Multiple choice needs answers: " {choice}", any other task a word per label.'
            raise _mismatch("the answers do not fit the format", cure)
        if isinstance(self.answers, str):
            return self
        return replace(self, answers=_sort_answers(self.answers, labels))

    def question(self, example: Example) -> str:
        """Returns the question without its answer."""
        return templates.fill(self.text, example.fields)

    def answer_texts(self, example: Example) -> tuple[str, ...]:
        """Returns the K answers, in the order of the choices or labels."""
        if self.threshold:
            return (templates.fill(str(self.answers), example.fields),)
        if isinstance(self.answers, str):
            return tuple(templates.fill(self.answers, {CHOICE: text}) for text in example.choices)
        return tuple(self.answers.values())


def _sort_answers(answers: Mapping[str, str], labels: Labels) -> dict[str, str]:
    """The answers in the order of the classes, or of the scores that they stand for."""
    if isinstance(labels, Range):
        return dict(sorted(answers.items(), key=lambda pair: _parse_score(pair[0], labels)))
    for name in sorted(answers.keys() - set(labels.names)):
        raise _mismatch(f"unknown label {name!r} in answers", suggest(name, labels.names))
    for name in sorted(set(labels.names) - answers.keys()):
        raise _mismatch(f"the label {name!r} is missing in answers", "Give it a word.")
    return {name: answers[name] for name in labels.names}


def _parse_score(name: str, labels: Range) -> float:
    try:
        return labels.parse(name)
    except RowError:
        what = f"{name!r} in answers is not a score from {labels.low:g} to {labels.high:g}"
        raise _mismatch(what, 'Give some scores a word: {"0": " no", "5": " yes"}.') from None


def _mismatch(what: str, cure: str) -> UsageError:
    return UsageError(what, where="task.prompt", cure=cure)
