"""The exception for mistakes that the user can correct."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A mistake of the user. The command line prints it without a traceback and exits with 2.

    Args:
        what: What is wrong, in one sentence.
        where: The place: a file and line, a row, or a key.
        cure: How to correct it.
    """

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        super().__init__("\n".join(filter(None, (self.headline, cure))))

    @property
    def headline(self) -> str:
        """Place and mistake on one line."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def located(self, where: str) -> "UsageError":
        """Returns the same error with `where` before the place that it already names."""
        place = f"{where}, {self.where}" if self.where else where
        return type(self)(self.what, where=place, cure=self.cure)


class RowError(UsageError):
    """A row of data that cannot become an example."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns a cure for a misspelt name: the nearest known one, or all of them."""
    names = sorted(map(str, known))
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Did you mean {close[0]!r}?" if close else f"Known: {listed}."
