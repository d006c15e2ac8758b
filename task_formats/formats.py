"""Formats: how the texts of an example are arranged as views (GPT-1, figure 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from task_formats import templates
from task_formats.errors import UsageError, suggest
from task_formats.example import Example

CHOICE = "choice"

ViewText = tuple[tuple[str, ...], ...]
"""One view as text: its segments, and the pieces of each."""
RESERVED = frozenset({"choices", "label"})
"""Names that a view cannot use as fields."""


@dataclass(frozen=True)
class Format:
    """The views of an example: each a sequence of segments, each segment a template over fields.

    A view that contains `{choice}` is repeated for every choice, and the label is the index of a
    view. Otherwise the label is a class or a score.
    """

    views: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.views or not all(self.views):
            raise UsageError("a format needs views, and each view at least one text")
        for segment in (segment for view in self.views for segment in view):
            names = templates.field_names(segment)
            if not names:
                what = f"the segment {segment!r} contains no field"
                raise UsageError(what, cure="Write it as {field}.")
            for name in RESERVED.intersection(names):
                what = f"the segment {segment!r} uses the reserved name {name!r}"
                raise UsageError(what, cure="Use {choice} for a choice, or rename the field.")
        if self.is_multiple_choice and len(self.views) > 1:
            raise UsageError("a format with {choice} has exactly one view, repeated per choice")

    @cached_property
    def is_multiple_choice(self) -> bool:
        """True when the label is the index of a view."""
        return CHOICE in self._names

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of all views without `choice`, in order of first use."""
        return tuple(dict.fromkeys(name for name in self._names if name != CHOICE))

    @property
    def _names(self) -> list[str]:
        segments = [segment for view in self.views for segment in view]
        return [name for segment in segments for name in templates.field_names(segment)]

    def render(self, example: Example) -> list[ViewText]:
        """Returns the K views as text: the segments of each, and a piece to truncate per field."""
        if not self.is_multiple_choice:
            return [_fill(view, example.fields) for view in self.views]
        view, fields = self.views[0], example.fields
        return [_fill(view, {**fields, CHOICE: choice}) for choice in example.choices]


def _fill(view: Sequence[str], values: Mapping[str, str]) -> ViewText:
    return tuple(templates.fill_pieces(segment, values) for segment in view)


FORMATS = {
    "classification": Format((("{text}",),)),
    "entailment": Format((("{premise}", "{hypothesis}"),)),
    "similarity": Format((("{first}", "{second}"), ("{second}", "{first}"))),
    "multiple_choice": Format((("{context}", "{choice}"),)),
}


def named_format(name: str) -> Format:
    """Returns one of FORMATS; UsageError with the nearest name if there is none."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}", cure=suggest(name, FORMATS))
    return FORMATS[name]
