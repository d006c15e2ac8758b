"""The same task asked in words: a question, and the words that stand for each answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from task_formats import templates
from task_formats.errors import UsageError
from task_formats.example import Example
from task_formats.formats import CHOICE

Normalization = Literal["none", "token", "byte", "prior"]


@dataclass(frozen=True)
class Prompt:
    """A question as a template over fields, and the answers compared by their likelihood.

    `answers` maps label names to words, or is one template with `{choice}`. `normalization`
    follows GPT-3, section 2.4: "prior" divides by p(answer | `prior`).
    """

    text: str
    answers: Mapping[str, str] | str
    separator: str = "\n\n"
    normalization: Normalization = "none"
    prior: str = "Answer: "
    fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if not self.answers:
            raise UsageError("a prompt needs answers", cure="Give a word for every label.")
        if isinstance(self.answers, str) and CHOICE not in templates.names(self.answers):
            raise UsageError(
                f"task.prompt.answers {self.answers!r} is one text without {{choice}}",
                cure='Write answers: " {choice}", or a word for every label.',
            )
        object.__setattr__(self, "fields", frozenset(templates.names(self.text)))

    def question(self, example: Example) -> str:
        """The example in words, its answer left open."""
        return templates.fill(self.text, example.fields)

    def answer_texts(self, example: Example) -> tuple[str, ...]:
        """The K answers, in the order of the labels or of the choices."""
        if isinstance(self.answers, str):
            return tuple(templates.fill(self.answers, {CHOICE: text}) for text in example.choices)
        return tuple(self.answers.values())
