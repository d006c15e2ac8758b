"""Solved examples that stand before a question: drawn by chance, alike every time."""

from collections.abc import Hashable, Sequence
from random import Random

from task_formats.errors import UsageError
from task_formats.example import Example


class Demonstrations:
    """Draws `shots` solved examples for a question; never the question itself, nor its duplicate.

    Two examples are duplicates when their fields and choices are equal; of those in the pool only
    the first is used. With `shared` all questions see the same examples in the same order, and one
    that is itself among them sees the next one in its place; otherwise each draws its own (GPT-3,
    section 2.4). What is drawn depends on the seed, the pool and the question's id alone.
    Raises UsageError where the pool holds too few different labelled examples.
    """

    def __init__(
        self, pool: Sequence[Example], shots: int, seed: int = 0, shared: bool = False
    ) -> None:
        solved = (example for example in pool if example.label is not None)
        distinct = {_key(example): example for example in reversed(list(solved))}
        self._pool = list(reversed(distinct.values()))
        self._place = {_key(example): place for place, example in enumerate(self._pool)}
        # One more than is shown, should the question be among them.
        if 0 < shots > len(self._pool) - 1:
            raise UsageError(
                f"{shots} shots need {shots + 1} different labelled examples, "
                f"and there are {len(self._pool)}",
                cure="Ask for fewer shots, or draw from a larger split.",
            )
        self.shots, self.seed, self.shared = shots, seed, shared

    def draw(self, question: Example) -> tuple[Example, ...]:
        """The solved examples for one question, the oldest first."""
        if not self.shots:
            return ()
        same = self._place.get(_key(question))
        places = Random(self._seed(question)).sample(range(len(self._pool)), self.shots + 1)
        return tuple(self._pool[n] for n in places if n != same)[: self.shots]

    def _seed(self, question: Example) -> str:
        return f"{self.seed}" if self.shared else f"{self.seed} {question.id}"


def _key(example: Example) -> Hashable:
    return tuple(sorted(example.fields.items())), example.choices
