"""Solved examples before a question, drawn at random but reproducibly (few-shot prompts)."""

from collections.abc import Hashable, Sequence
from random import Random

from task_formats.errors import UsageError
from task_formats.example import Example


class Demonstrations:
    """Draws `shots` solved examples for a question; never the question itself or a duplicate of it.

    Two examples are duplicates if their fields and choices are equal. Unlabelled ones are left out.
    The draw depends only on the seed, the pool and the question's id (GPT-3, section 2.4). `shared`
    shows all questions the same examples in the same order; a question that is one of them gets the
    next one instead. UsageError if the pool has too few different labelled examples.
    """

    def __init__(
        self, pool: Sequence[Example], shots: int, seed: int = 0, shared: bool = False
    ) -> None:
        labelled = [example for example in pool if example.label is not None]
        distinct = {_key(example): example for example in reversed(labelled)}
        self._pool = list(reversed(distinct.values()))
        self._index = {_key(example): n for n, example in enumerate(self._pool)}
        # One more than `shots`, in case the question is among them.
        if 0 < shots > len(self._pool) - 1:
            what = f"{shots} shots need {shots + 1} different labelled examples"
            cure = "Use fewer shots, or draw from a larger split."
            raise UsageError(f"{what}, and there are {len(self._pool)}", cure=cure)
        self.shots, self.seed, self.shared = shots, seed, shared

    def draw(self, question: Example) -> tuple[Example, ...]:
        """Returns the demonstrations of a question, in the order in which they are shown."""
        if not self.shots:
            return ()
        seed = f"{self.seed}" if self.shared else f"{self.seed} {question.id}"
        indices = Random(seed).sample(range(len(self._pool)), self.shots + 1)
        own_index = self._index.get(_key(question))
        return tuple(self._pool[n] for n in indices if n != own_index)[: self.shots]


def _key(example: Example) -> Hashable:
    return tuple(sorted(example.fields.items())), example.choices
