"""The same task asked in words: a question, and the words that stand for each answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from task_formats import templates
from task_formats.errors import UsageError, suggest
from task_formats.example import Example
from task_formats.formats import CHOICE
from task_formats.labels import Labels, Range

Normalization = Literal["none", "token", "byte", "prior"]
Threshold = Literal["train", "median"]


@dataclass(frozen=True)
class Prompt:
    """A question as a template over fields, and the answers compared by their likelihood.

    `answers` maps label names to words, or for a score some of its values ("0", "2.5"); or it is
    one template with `{choice}`. `normalization` follows GPT-3, section 2.4: "prior" divides by
    p(answer | `prior`).

    With a `threshold` there is but one answer, a template over fields: of two labels the last is
    meant where it is likelier than the threshold (GPT-1, section 5, for CoLA). "train" takes the
    threshold that is best on the training split, "median" that of the questions themselves, which
    needs no label.
    """

    text: str
    answers: Mapping[str, str] | str
    separator: str = "\n\n"
    normalization: Normalization = "none"
    prior: str = "Answer: "
    threshold: Threshold | None = None
    fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.answers:
            raise UsageError("a prompt needs answers", cure="Give a word for every label.")
        named = templates.names(self.answers) if isinstance(self.answers, str) else ()
        if self.threshold:
            self._check_threshold(named)
        elif isinstance(self.answers, str) and CHOICE not in named:
            raise UsageError(
                f"task.prompt.answers {self.answers!r} is one text without {{choice}}",
                cure='Write answers: " {choice}", or a word for every label.',
            )
        read = {*templates.names(self.text), *(named if self.threshold else ())}
        object.__setattr__(self, "fields", frozenset(read))

    def _check_threshold(self, named: Sequence[str]) -> None:
        """A threshold is for one text with fields in it."""
        if not named or CHOICE in named:
            raise UsageError(
                f"task.prompt.answers {self.answers!r} is no text of the fields",
                cure='With a threshold write answers: "{text}".',
            )

    def fit(self, chooses: bool, labels: Labels, fields: Sequence[str]) -> "Prompt":
        """The prompt with its answers in the order of a task's labels (facts, trap 4).

        Raises UsageError where the text or the answers name what the task does not have.
        """
        for name in sorted(self.fields - set(fields)):
            raise _misfit(f"the text names {name!r}", suggest(name, fields))
        if self.threshold:
            if chooses or isinstance(labels, Range) or labels.width != 2:
                raise _misfit("a threshold parts two labels", "Leave task.prompt.threshold out.")
            return self
        if chooses != isinstance(self.answers, str):
            cure = 'Write answers: " {choice}".' if chooses else "Give a word for every label."
            raise _misfit("the answers do not fit the format", cure)
        if isinstance(self.answers, str):
            return self
        return replace(self, answers=_ordered(self.answers, labels))

    def question(self, example: Example) -> str:
        """The example in words, its answer left open."""
        return templates.fill(self.text, example.fields)

    def answer_texts(self, example: Example) -> tuple[str, ...]:
        """The K answers, in the order of the choices, or of `answers` (see `fit`)."""
        if self.threshold:
            return (templates.fill(str(self.answers), example.fields),)
        if isinstance(self.answers, str):
            return tuple(templates.fill(self.answers, {CHOICE: text}) for text in example.choices)
        return tuple(self.answers.values())


def _ordered(answers: Mapping[str, str], labels: Labels) -> dict[str, str]:
    """The answers in the order of the classes, or of the scores that they stand for."""
    if isinstance(labels, Range):
        return dict(sorted(answers.items(), key=lambda pair: _score(pair[0], labels)))
    for name in answers:
        if name not in labels.names:
            cure = suggest(name, labels.names)
            raise _misfit(f"the answers name an unknown label {name!r}", cure)
    for name in labels.names:
        if name not in answers:
            raise _misfit(f"the answers lack the label {name!r}", "Give it a word.")
    return {name: answers[name] for name in labels.names}


def _score(name: str, labels: Range) -> float:
    try:
        return labels.parse(name)
    except UsageError:
        bounds = f"from {labels.low:g} to {labels.high:g}"
        raise _misfit(
            f"the answers name {name!r}, which is no score {bounds}",
            'Give some scores a word: {"0": " no", "5": " yes"}.',
        ) from None


def _misfit(what: str, cure: str) -> UsageError:
    return UsageError(what, where="task.prompt", cure=cure)
