"""From questions in words to token sequences: zero-, one- and few-shot prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from task_formats.boundary import Boundary, Parted
from task_formats.demonstrations import Demonstrations
from task_formats.errors import UsageError
from task_formats.example import Encoded, Example, Label
from task_formats.labels import Range
from task_formats.prompts import Prompt
from task_formats.task import Task


class Question(NamedTuple):
    """One asked example: what is read for it, and where its K answers stand."""

    id: str
    label: Label
    parts: tuple[Encoded, ...]
    """Mostly one: the context as prefix, the answers as endings. Several where the context had to
    be cut, because each answer leaves room for as much of it as fits beside that answer."""
    places: tuple[tuple[int, int], ...]
    """(K,) part and ending of every answer."""
    text_bytes: tuple[int, ...]
    """(K,) UTF-8 bytes of every answer's text, blanks at its ends not counted."""
    shots: int
    """Solved examples that stand before the question."""
    dropped: int = 0
    """Solved examples that did not fit."""

    @property
    def cut(self) -> int:
        """Tokens of the context that the answer with the least room had to do without."""
        return max(part.cut for part in self.parts)

    @property
    def token_counts(self) -> tuple[int, ...]:
        """(K,) tokens of every answer."""
        return tuple(len(self.parts[part].endings[ending]) for part, ending in self.places)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question in words, its solved examples, and how many of them to show."""

    example: Example
    text: str
    answers: tuple[str, ...]
    solved: tuple[str, ...]
    shots: int

    def context(self, separator: str) -> str:
        """The latest solved examples, and the question."""
        return separator.join([*self.solved[len(self.solved) - self.shots :], self.text])


class PromptEncoder:
    """Turns examples into contexts and answers, for a model that can read `max_tokens`.

    Solved examples that do not fit are dropped whole, the oldest first; a question that still does
    not fit loses its beginning. The last token of an answer is predicted and never read, so
    context and answer may have max_tokens + 1 in all (as in lm-evaluation-harness).
    Raises UsageError for a task without a prompt, and for an answer longer than `max_tokens`.
    """

    def __init__(
        self,
        task: Task,
        boundary: Boundary,
        max_tokens: int,
        demonstrations: Demonstrations,
    ) -> None:
        if task.prompt is None:
            raise UsageError(
                "the task has no prompt",
                where="task.prompt",
                cure="Give it a text and a word for every answer.",
            )
        self.task, self.prompt = task, task.prompt
        self.demonstrations, self.limit = demonstrations, max_tokens + 1
        self._boundary = boundary
        self._lengths: dict[str, int] = {}

    def encode(self, examples: Sequence[Example]) -> list[Question]:
        """The questions with as many of their solved examples as fit."""
        return self._encode([self._ask(e, self.prompt.question(e), None) for e in examples])

    def write(self, example: Example) -> tuple[str, tuple[str, ...]]:
        """The context in words, none of its solved examples dropped, and the answers."""
        asked = self._ask(example, self.prompt.question(example), None)
        return asked.context(self.prompt.separator), asked.answers

    def encode_content_free(
        self, examples: Sequence[Example], questions: Sequence[Question], word: str
    ) -> list[Question]:
        """The questions with `word` for every field, after the solved examples they had.

        What the model answers to these is its bias (Zhao et al. 2021, contextual calibration).
        """
        empty = [replace(e, fields=dict.fromkeys(e.fields, word)) for e in examples]
        return self._encode(
            [
                self._ask(e, self.prompt.question(nothing), question.shots)
                for e, nothing, question in zip(examples, empty, questions, strict=True)
            ]
        )

    def encode_prior(self, examples: Sequence[Example]) -> list[Question]:
        """The answers after the prompt's `prior` alone (GPT-3, section 2.4).

        Where the answers bring a blank of their own, that at the end of the prior is left out.
        """
        asked = [self._ask(e, self.prompt.prior, 0) for e in examples]
        return self._encode([replace(one, text=_before(one.text, one.answers)) for one in asked])

    def _ask(self, example: Example, text: str, shots: int | None) -> _Asked:
        solved = () if shots == 0 else tuple(map(self._solve, self.demonstrations.draw(example)))
        kept = solved[len(solved) - shots :] if shots is not None else solved
        return _Asked(example, text, self.prompt.answer_texts(example), kept, len(kept))

    def _solve(self, example: Example) -> str:
        answers = self.prompt.answer_texts(example)
        return (
            self.prompt.question(example) + answers[answer_index(self.prompt, self.task, example)]
        )

    def _encode(self, asked: list[_Asked]) -> list[Question]:
        return [self._question(*settled) for settled in self._settle(self._guess(asked))]

    def _guess(self, asked: list[_Asked]) -> list[_Asked]:
        """How many solved examples might fit, from their lengths one by one."""
        texts = dict.fromkeys(text for one in asked for text in (*one.solved, one.text))
        fresh = [text for text in texts if text not in self._lengths]
        self._lengths.update(zip(fresh, map(len, self._boundary.tokenize(fresh)), strict=True))
        guesses = []
        for one in asked:
            room, shots = self.limit - self._lengths[one.text], 0
            for text in reversed(one.solved):
                room -= self._lengths[text]
                shots += room > 0
            guesses.append(replace(one, shots=shots))
        return guesses

    def _settle(self, asked: Sequence[_Asked]) -> list[tuple[_Asked, Parted]]:
        """The most solved examples that do fit, tokenised together with their question."""
        best: list[tuple[_Asked, Parted] | None] = [None] * len(asked)
        too_many = [len(one.solved) + 1 for one in asked]
        trying = dict(enumerate(asked))
        while trying:
            pairs = [(one.context(self.prompt.separator), one.answers) for one in trying.values()]
            found = self._boundary.part(pairs)
            for (n, one), parted in zip(list(trying.items()), found, strict=True):
                if parted.longest <= self.limit or not one.shots:
                    best[n] = (one, parted)
                else:
                    too_many[n] = one.shots
                known = best[n]
                shots = known[0].shots + 1 if known else one.shots - 1
                trying[n] = replace(one, shots=shots)
                if shots == too_many[n]:
                    del trying[n]
        return [pair for pair in best if pair is not None]

    def _question(self, asked: _Asked, parted: Parted) -> Question:
        """Answers grouped by how much of the context fits beside them."""
        whole, name = len(parted.context), asked.example.id
        kept = [min(whole, self.limit - len(answer)) for answer in parted.answers]
        if min(kept) < 1:
            raise UsageError(
                f"an answer of {self.limit - min(kept)} tokens is longer than the "
                f"{self.limit - 1} that can be read",
                where=name,
                cure="Ask a base that reads more, or leave the row out.",
            )
        groups: dict[int, list[list[int]]] = {length: [] for length in kept}
        places = []
        for length, answer in zip(kept, parted.answers, strict=True):
            places.append((list(groups).index(length), len(groups[length])))
            groups[length].append(answer)
        parts = [
            Encoded(name, parted.context[whole - length :], tuple(endings), cut=whole - length)
            for length, endings in groups.items()
        ]
        return Question(
            name,
            asked.example.label,
            tuple(parts),
            tuple(places),
            tuple(len(answer.strip().encode()) for answer in asked.answers),
            asked.shots,
            len(asked.solved) - asked.shots,
        )


def _before(text: str, answers: Sequence[str]) -> str:
    return text.rstrip() if all(answer[:1].isspace() for answer in answers) else text


def answer_values(prompt: Prompt) -> tuple[float, ...]:
    """(K,) numbers that the answers of a score task stand for."""
    return tuple(map(float, prompt.answers))


def answer_index(prompt: Prompt, task: Task, example: Example) -> int:
    """Which answer solves a labelled example; for a score, the one whose number is nearest."""
    label = example.label
    if label is None:
        raise UsageError("an example without a label cannot be shown solved", where=example.id)
    if not isinstance(task.labels, Range):
        return int(label)
    values = answer_values(prompt)
    return min(range(len(values)), key=lambda k: abs(values[k] - label))
