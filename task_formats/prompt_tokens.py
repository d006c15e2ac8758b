"""Zero-, one- and few-shot prompts as token sequences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, cast

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
    """

    tokenize: Tokenize
    start_ids: Sequence[int] = ()
    """Tokens that the model expects before every text; none for GPT-2."""
    empty_id: int = 0
    """The token that replaces an empty context."""

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
        # The context is this token: an answer does not repeat it.
        trimmed = [ids[1:] if ids[:1] == [self.empty_id] and ids[1:] else ids for ids in answer_ids]
        return TokenizedAnswers([self.empty_id], trimmed)

    def _encode_alone(self, context: str, answer: str) -> Sequence[int]:
        ids = self.tokenize([context[len(context.rstrip()) :] + answer])[0]
        if not ids:
            what, where = f"the answer {answer!r} has no tokens", "task.prompt.answers"
            raise UsageError(what, where=where, cure="Give every answer a word.")
        return ids


class Question(NamedTuple):
    """A prompt for one example, in tokens."""

    id: str
    label: Label
    groups: tuple[Encoded, ...]
    """Context as prefix, answers as endings; one group per length of the truncated context."""
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
        return tuple(len(self.groups[n].endings[k]) for n, k in self.answer_positions)


class _PromptText(NamedTuple):
    """A question as text."""

    example: Example
    question: str
    answers: tuple[str, ...]
    demonstrations: tuple[str, ...] = ()


class PromptEncoder:
    """Turns examples into contexts and answers for a language model.

    Demonstrations that do not fit are dropped whole, the first ones first; a question that still
    does not fit loses its beginning. The last token of an answer is predicted but never read, so
    context and answer may have max_tokens + 1 tokens (as in lm-evaluation-harness).

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
            cure = "Give it a text and a word for every answer."
            raise UsageError("the task has no prompt", where="task.prompt", cure=cure)
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
        return self._context(text, len(text.demonstrations)), text.answers

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
            texts.append(text._replace(demonstrations=text.demonstrations[question.dropped :]))
        return self._encode(texts)

    def encode_prior(self, examples: Sequence[Example]) -> list[Question]:
        """Encodes the answers after the prompt's `prior` alone (GPT-3, section 2.4)."""
        texts = []
        for example in examples:
            answers = self.prompt.answer_texts(example)
            prior = self.prompt.prior
            if all(answer[:1].isspace() for answer in answers):
                prior = prior.rstrip()  # the answers bring the blank
            texts.append(_PromptText(example, prior, answers))
        return self._encode(texts)

    def _render(self, example: Example, question: str) -> _PromptText:
        solved = tuple(map(self._solve, self.demonstrations.draw(example)))
        return _PromptText(example, question, self.prompt.answer_texts(example), solved)

    def _solve(self, example: Example) -> str:
        answers = self.prompt.answer_texts(example)
        return self.prompt.question(example) + answers[_answer_index(self.task, example)]

    def _context(self, text: _PromptText, shots: int) -> str:
        """The last `shots` demonstrations and the question."""
        first = len(text.demonstrations) - shots
        return self.prompt.separator.join([*text.demonstrations[first:], text.question])

    def _encode(self, texts: list[_PromptText]) -> list[Question]:
        """With the most demonstrations that fit, tokenized together with their question."""
        best: dict[int, tuple[int, TokenizedAnswers]] = {}
        too_many = [len(text.demonstrations) + 1 for text in texts]
        shots_to_try = dict(enumerate(self._estimate_shots(texts)))
        while shots_to_try:
            tried = list(shots_to_try.items())
            pairs = [(self._context(texts[n], shots), texts[n].answers) for n, shots in tried]
            for (n, shots), tokens in zip(tried, self._tokenizer.encode(pairs), strict=True):
                if tokens.max_length <= self.limit or not shots:
                    best[n] = (shots, tokens)
                else:
                    too_many[n] = shots
                shots_to_try[n] = best[n][0] + 1 if n in best else shots - 1
                if shots_to_try[n] == too_many[n]:
                    del shots_to_try[n]
        return [self._group(text, *best[n]) for n, text in enumerate(texts)]

    def _estimate_shots(self, texts: list[_PromptText]) -> Iterator[int]:
        """How many demonstrations might fit, from their lengths one by one."""
        pieces = (piece for text in texts for piece in (*text.demonstrations, text.question))
        new = [piece for piece in dict.fromkeys(pieces) if piece not in self._lengths]
        self._lengths.update(zip(new, map(len, self._tokenizer.tokenize(new)), strict=True))
        for text in texts:
            lengths = [
                self._lengths[piece] for piece in (text.question, *text.demonstrations[::-1])
            ]
            yield sum(total < self.limit for total in list(accumulate(lengths))[1:])

    def _group(self, text: _PromptText, shots: int, tokens: TokenizedAnswers) -> Question:
        """Groups answers by how much of the context fits beside them."""
        total, name = len(tokens.context), text.example.id
        kept = [min(total, self.limit - len(answer)) for answer in tokens.answers]
        if min(kept) < 1:
            longest, maximum = self.limit - min(kept), self.limit - 1
            what = f"an answer has {longest} tokens, more than the model's maximum of {maximum}"
            cure = "Use a base with a longer context, or leave the row out."
            raise UsageError(what, where=name, cure=cure)
        endings: dict[int, list[list[int]]] = {length: [] for length in kept}
        positions = []
        for length, answer in zip(kept, tokens.answers, strict=True):
            positions.append((list(endings).index(length), len(endings[length])))
            endings[length].append(answer)
        groups = (
            Encoded(name, tokens.context[total - n :], tuple(answers), truncated_tokens=total - n)
            for n, answers in endings.items()
        )
        text_bytes = tuple(len(answer.strip().encode()) for answer in text.answers)
        label, dropped = text.example.label, len(text.demonstrations) - shots
        return Question(name, label, tuple(groups), tuple(positions), text_bytes, shots, dropped)


def answer_values(prompt: Prompt) -> tuple[float, ...]:
    """Returns the (K,) scores that the answers of a score task stand for."""
    return tuple(map(float, prompt.answers))


def _answer_index(task: Task, example: Example) -> int:
    """Which answer is right; for a score, the one with the nearest value."""
    label = cast(float, example.label)  # demonstrations have labels
    if not isinstance(task.labels, Range):
        return int(label)
    values = answer_values(cast(Prompt, task.prompt))
    return min(range(len(values)), key=lambda k: abs(values[k] - label))
