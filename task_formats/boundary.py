"""Where a context ends and an answer begins, in tokens: as lm-evaluation-harness parts them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from task_formats.encoding import Tokenize
from task_formats.errors import UsageError


class Parted(NamedTuple):
    """A context's tokens, and those of each of its K answers."""

    context: list[int]
    answers: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the context with its longest answer."""
        return len(self.context) + max(map(len, self.answers))


@dataclass(frozen=True, slots=True)
class Boundary:
    """Tokenises contexts together with their answers and parts them.

    `start` holds the tokens that the model expects before every text (none for GPT-2), `empty` the
    one that stands for a context without text. An answer's tokens are those of context and answer
    together from the context's own number of tokens on. Blanks at the context's end go to the
    answer, because byte-level BPE joins a blank with the word after it.
    """

    tokenize: Tokenize
    start: Sequence[int] = ()
    empty: int = 0

    def part(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[Parted]:
        """Contexts, each with its answers, all tokenised in one call.

        Raises UsageError for an answer without any token.
        """
        texts = dict.fromkeys(
            text
            for context, answers in pairs
            for text in [context.rstrip(), *(context + answer for answer in answers)]
        )
        ids = dict(zip(texts, self.tokenize(list(texts)), strict=True)) if texts else {}
        return [self._part(ids, context, answers) for context, answers in pairs]

    def _part(
        self, ids: Mapping[str, Sequence[int]], context: str, answers: Sequence[str]
    ) -> Parted:
        before = ids[context.rstrip()]
        after = [
            # Where one token swallowed the whole answer, it is read by itself.
            list(ids[context + answer][len(before) :] or self._alone(context, answer))
            for answer in answers
        ]
        if before:
            return Parted([*self.start, *before], after)
        return Parted([self.empty], [self._without_empty(answer) for answer in after])

    def _without_empty(self, answer: list[int]) -> list[int]:
        """An answer that itself begins with the empty context's token does not get it twice."""
        return answer[1:] if len(answer) > 1 and answer[0] == self.empty else answer

    def _alone(self, context: str, answer: str) -> Sequence[int]:
        found = self.tokenize([context[len(context.rstrip()) :] + answer])[0]
        if not found:
            raise UsageError(
                f"the answer {answer!r} has no tokens",
                where="task.prompt.answers",
                cure="Give every answer a word.",
            )
        return found
