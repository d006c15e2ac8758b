"""The exception for mistakes that the user can correct."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

_MAX_COMPARED = 100
"""Characters of a name that are compared with the known ones."""


class UsageError(ValueError):
    """A mistake of the user. The command line prints it without a traceback and exits with 2.

    Args:
        what: What is wrong, in one sentence.
        where: The place: a file and line, a row, or a key.
        cure: How to correct it. A function is called when the cure is read: to look for a name
            that is spelt alike takes long, and most errors of skipped rows are never shown.
    """

    def __init__(self, what: str, *, where: str = "", cure: str | Callable[[], str] = "") -> None:
        self.what, self.where, self._cure = what, where, cure
        super().__init__(self.headline)

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.headline, self.cure)))

    @property
    def cure(self) -> str:
        """How to correct the mistake."""
        return self._cure if isinstance(self._cure, str) else self._cure()

    @property
    def headline(self) -> str:
        """Place and mistake on one line."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def located(self, where: str) -> "UsageError":
        """Returns the same error with `where` before the place that it already names."""
        place = f"{where}, {self.where}" if self.where else where
        return type(self)(self.what, where=place, cure=self._cure)


class RowError(UsageError):
    """A row of data that cannot become an example."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a cure for a misspelt name: the nearest known one, or all of them."""
    names = sorted(map(str, known))
    close = get_close_matches(str(name)[:_MAX_COMPARED], names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Did you mean {close[0]!r}?" if close else f"Known: {listed}."
