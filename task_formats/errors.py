"""The one exception for mistakes that the person at the keyboard can cure."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A mistake in what somebody wrote: what is wrong, where, and the cure.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, where: str = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, where, cure
        super().__init__("\n".join(part for part in (self.headline, cure) if part))

    @property
    def headline(self) -> str:
        """Place and fault on one line."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def located(self, where: str) -> "UsageError":
        """The same mistake with a place put before the one it already names."""
        place = f"{where}, {self.where}" if self.where else where
        return type(self)(self.what, where=place, cure=self.cure)


class RowError(UsageError):
    """A row of data that cannot become an example."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A cure for a misspelt name: the nearest known one, or all of them."""
    names = sorted(str(item) for item in known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"Did you mean {close[0]!r}?" if close else f"Known: {listed}."
