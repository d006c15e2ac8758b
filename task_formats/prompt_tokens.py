"""Zero-, one- and few-shot prompts as token sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from task_formats.demonstrations import Demonstrations
from task_formats.encoding import Tokenize
from task_formats.errors import UsageError
from task_formats.example import Encoded, Example, Label
from task_formats.labels import Range
from task_formats.prompts import Prompt
from task_formats.task import Task


class TokenizedAnswers(NamedTuple):
    """The tokens of a context, and of each of its K answers."""

    context: list[int]
    answers: list[list[int]]

    @property
    def max_length(self) -> int:
        """Tokens of the context with its longest answer."""
        return len(self.context) + max(map(len, self.answers))


@dataclass(frozen=True, slots=True)
class AnswerTokenizer:
    """Tokenizes contexts together with their answers, as lm-evaluation-harness does.

    The tokens of an answer are those of context + answer that follow the number of tokens that the
    context has alone. Blanks at the end of the context count as part of the answer, because
    byte-level BPE joins a blank with the next word.

    Args:
        tokenize: Texts to token ids, without special tokens.
        start_ids: Tokens that the model expects before every text; none for GPT-2.
        empty_id: The token that replaces an empty context.
    """

    tokenize: Tokenize
    start_ids: Sequence[int] = ()
    empty_id: int = 0

    def encode(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[TokenizedAnswers]:
        """Tokenizes contexts, each with its K answers, in one call.

        Raises:
            UsageError: An answer has no tokens.
        """
        texts = dict.fromkeys(
            text
            for context, answers in pairs
            for text in [context.rstrip(), *(context + answer for answer in answers)]
        )
        ids = dict(zip(texts, self.tokenize(list(texts)), strict=True)) if texts else {}
        return [self._split(ids, context, answers) for context, answers in pairs]

    def _split(
        self, ids: Mapping[str, Sequence[int]], context: str, answers: Sequence[str]
    ) -> TokenizedAnswers:
        context_ids = ids[context.rstrip()]
        answer_ids = [
            # Where one token covers the end of the context and the whole answer, no token is left.
            list(ids[context + answer][len(context_ids) :] or self._encode_alone(context, answer))
            for answer in answers
        ]
        if context_ids:
            return TokenizedAnswers([*self.start_ids, *context_ids], answer_ids)
        return TokenizedAnswers([self.empty_id], list(map(self._without_empty_id, answer_ids)))

    def _without_empty_id(self, answer: list[int]) -> list[int]:
        """The context has this token already."""
        return answer[1:] if len(answer) > 1 and answer[0] == self.empty_id else answer

    def _encode_alone(self, context: str, answer: str) -> Sequence[int]:
        ids = self.tokenize([context[len(context.rstrip()) :] + answer])[0]
        if not ids:
            raise UsageError(
                f"the answer {answer!r} has no tokens",
                where="task.prompt.answers",
                cure="Give every answer a word.",
            )
        return ids


class Question(NamedTuple):
    """A prompt for one example, in tokens."""

    id: str
    label: Label
    groups: tuple[Encoded, ...]
    """The context as prefix and the answers as endings. One group, unless the context had to be
    truncated: then a group for every length of context that is left beside an answer."""
    answer_positions: tuple[tuple[int, int], ...]
    """(K,) group and ending of every answer."""
    text_bytes: tuple[int, ...]
    """(K,) UTF-8 bytes of every answer, without blanks at its ends."""
    shots: int
    """Demonstrations before the question."""
    dropped: int = 0
    """Demonstrations that did not fit."""

    @property
    def truncated_tokens(self) -> int:
        """Tokens removed from the context, for the answer that leaves the least space."""
        return max(group.truncated_tokens for group in self.groups)

    @property
    def token_counts(self) -> tuple[int, ...]:
        """(K,) tokens of every answer."""
        return tuple(
            len(self.groups[group].endings[ending]) for group, ending in self.answer_positions
        )


@dataclass(frozen=True, slots=True)
class _PromptText:
    """A question as text, its demonstrations, and how many of them are used."""

    example: Example
    question: str
    answers: tuple[str, ...]
    demonstrations: tuple[str, ...]
    shots: int

    def context(self, separator: str) -> str:
        """The last `shots` demonstrations and the question."""
        first = len(self.demonstrations) - self.shots
        return separator.join([*self.demonstrations[first:], self.question])


class PromptEncoder:
    """Turns examples into contexts and answers for a language model.

    Demonstrations that do not fit are dropped whole, the first ones first; a question that still
    does not fit loses its beginning. The last token of an answer is predicted but never read, so
    context and answer may have max_tokens + 1 tokens (as in lm-evaluation-harness).

    Args:
        task: A task with a prompt.
        tokenizer: Tokenizes contexts and answers.
        max_tokens: Tokens that the model can read.
        demonstrations: Draws the solved examples of every question.

    Raises:
        UsageError: The task has no prompt; from every method, an answer is longer than max_tokens.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: AnswerTokenizer,
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
        self._tokenizer = tokenizer
        self._lengths: dict[str, int] = {}

    def encode(self, examples: Sequence[Example]) -> list[Question]:
        """Encodes questions with as many of their demonstrations as fit."""
        return self._encode([self._render(e, self.prompt.question(e)) for e in examples])

    def render(self, example: Example) -> tuple[str, tuple[str, ...]]:
        """Returns the context as text, with all demonstrations, and the K answers."""
        text = self._render(example, self.prompt.question(example))
        return text.context(self.prompt.separator), text.answers

    def encode_content_free(
        self, examples: Sequence[Example], questions: Sequence[Question], word: str
    ) -> list[Question]:
        """Encodes the questions with `word` for every field, after the same demonstrations.

        The model's answers to these are its bias (Zhao et al. 2021, contextual calibration).
        """
        texts = []
        for example, question in zip(examples, questions, strict=True):
            content_free = replace(example, fields=dict.fromkeys(example.fields, word))
            text = self._render(example, self.prompt.question(content_free))
            shown = text.demonstrations[len(text.demonstrations) - question.shots :]
            texts.append(replace(text, demonstrations=shown))
        return self._encode(texts)

    def encode_prior(self, examples: Sequence[Example]) -> list[Question]:
        """Encodes the answers after the prompt's `prior` alone (GPT-3, section 2.4)."""
        texts = []
        for example in examples:
            answers = self.prompt.answer_texts(example)
            prior = self.prompt.prior
            if all(answer[:1].isspace() for answer in answers):
                prior = prior.rstrip()  # the answers bring the blank
            texts.append(_PromptText(example, prior, answers, (), 0))
        return self._encode(texts)

    def _render(self, example: Example, question: str) -> _PromptText:
        solved = tuple(map(self._solve, self.demonstrations.draw(example)))
        answers = self.prompt.answer_texts(example)
        return _PromptText(example, question, answers, solved, len(solved))

    def _solve(self, example: Example) -> str:
        answers = self.prompt.answer_texts(example)
        return self.prompt.question(example) + answers[_answer_index(self.task, example)]

    def _encode(self, texts: list[_PromptText]) -> list[Question]:
        return [self._group(*fitted) for fitted in self._fit_shots(self._estimate_shots(texts))]

    def _estimate_shots(self, texts: list[_PromptText]) -> list[_PromptText]:
        """How many demonstrations might fit, from their lengths one by one."""
        parts = dict.fromkeys(
            part for text in texts for part in (*text.demonstrations, text.question)
        )
        new = [part for part in parts if part not in self._lengths]
        self._lengths.update(zip(new, map(len, self._tokenizer.tokenize(new)), strict=True))
        estimated = []
        for text in texts:
            free, shots = self.limit - self._lengths[text.question], 0
            for demonstration in reversed(text.demonstrations):
                free -= self._lengths[demonstration]
                shots += free > 0
            estimated.append(replace(text, shots=shots))
        return estimated

    def _fit_shots(
        self, texts: Sequence[_PromptText]
    ) -> list[tuple[_PromptText, TokenizedAnswers]]:
        """The most demonstrations that fit, tokenized together with their question."""
        best: dict[int, tuple[_PromptText, TokenizedAnswers]] = {}
        too_many = [len(text.demonstrations) + 1 for text in texts]
        candidates = dict(enumerate(texts))
        while candidates:
            pairs = [(c.context(self.prompt.separator), c.answers) for c in candidates.values()]
            tokenized = self._tokenizer.encode(pairs)
            for (n, text), tokens in zip(list(candidates.items()), tokenized, strict=True):
                if tokens.max_length <= self.limit or not text.shots:
                    best[n] = (text, tokens)
                else:
                    too_many[n] = text.shots
                shots = best[n][0].shots + 1 if n in best else text.shots - 1
                candidates[n] = replace(text, shots=shots)
                if shots == too_many[n]:
                    del candidates[n]
        return [best[n] for n in range(len(texts))]

    def _group(self, text: _PromptText, tokens: TokenizedAnswers) -> Question:
        """Groups answers by how much of the context fits beside them."""
        total, name = len(tokens.context), text.example.id
        kept = [min(total, self.limit - len(answer)) for answer in tokens.answers]
        if min(kept) < 1:
            raise UsageError(
                f"an answer has {self.limit - min(kept)} tokens, more than the model's "
                f"maximum of {self.limit - 1}",
                where=name,
                cure="Use a base with a longer context, or leave the row out.",
            )
        endings: dict[int, list[list[int]]] = {length: [] for length in kept}
        positions = []
        for length, answer in zip(kept, tokens.answers, strict=True):
            positions.append((list(endings).index(length), len(endings[length])))
            endings[length].append(answer)
        groups = [
            Encoded(
                name,
                tokens.context[total - length :],
                tuple(answers),
                truncated_tokens=total - length,
            )
            for length, answers in endings.items()
        ]
        return Question(
            name,
            text.example.label,
            tuple(groups),
            tuple(positions),
            tuple(len(answer.strip().encode()) for answer in text.answers),
            text.shots,
            len(text.demonstrations) - text.shots,
        )


def answer_values(prompt: Prompt) -> tuple[float, ...]:
    """Returns the (K,) scores that the answers of a score task stand for."""
    return tuple(map(float, prompt.answers))


def _answer_index(task: Task, example: Example) -> int:
    """Which answer is right; for a score, the one with the nearest value."""
    label = example.label
    if label is None:
        raise UsageError("an example without a label cannot be a demonstration", where=example.id)
    if task.prompt is None or not isinstance(task.labels, Range):
        return int(label)
    values = answer_values(task.prompt)
    return min(range(len(values)), key=lambda k: abs(values[k] - label))
