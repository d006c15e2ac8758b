"""How an example's texts are laid out as views: the four kinds of the GPT-1 paper, as data."""

from collections.abc import Sequence
from dataclasses import dataclass

from task_formats import templates
from task_formats.errors import UsageError, suggest
from task_formats.example import Example

CHOICE = "choice"

View = tuple[tuple[str, ...], ...]
"""One view in words: its segments, and the pieces of each."""
RESERVED = frozenset({"choices", "label"})
"""Columns with a meaning of their own: no view may read them as texts."""


@dataclass(frozen=True, slots=True)
class Format:
    """The views of one example: each a sequence of segments, each segment a template over fields.

    A view that mentions `{choice}` is repeated for every choice, and then the label names a view;
    otherwise the label names a class. That sentence is the whole difference between the kinds.
    """

    views: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.views or not all(self.views):
            raise UsageError("a format needs views, and each view at least one text")
        for view in self.views:
            for segment in view:
                if not templates.names(segment):
                    raise UsageError(
                        f"the segment {segment!r} names no field", cure="Write it as {field}."
                    )
                for name in RESERVED.intersection(templates.names(segment)):
                    cure = "A view may read a {choice}, and fields of any other name."
                    raise UsageError(f"the segment {segment!r} reads {name!r}", cure=cure)
        if self.chooses and not all(map(mentions_choice, self.views)):
            raise UsageError(
                "one view mentions {choice} and another does not",
                cure="Mention {choice} in every view or in none.",
            )
        if self.chooses and len(self.views) > 1:
            raise UsageError("a format over choices has exactly one view, repeated per choice")

    @property
    def chooses(self) -> bool:
        """True when the label names a view (multiple choice) and not a class."""
        return any(map(mentions_choice, self.views))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the views name, `choice` left out, in order of first mention."""
        found = [name for view in self.views for text in view for name in templates.names(text)]
        return tuple(dict.fromkeys(name for name in found if name != CHOICE))

    def lay_out(self, example: Example) -> list[View]:
        """The K views in words: the segments of each, and their pieces, one for every hole.

        A piece is what truncation cuts: a long article is cut, not the question behind it.
        """
        if not self.chooses:
            return [_fill(view, example, ()) for view in self.views]
        return [_fill(self.views[0], example, (choice,)) for choice in example.choices]


def mentions_choice(view: Sequence[str]) -> bool:
    """True when a segment of the view has a `{choice}` hole."""
    return any(CHOICE in templates.names(segment) for segment in view)


def _fill(view: Sequence[str], example: Example, choice: tuple[str, ...]) -> View:
    values = {**example.fields, **dict(zip((CHOICE,), choice, strict=False))}
    return tuple(templates.fill_pieces(segment, values) for segment in view)


FORMATS = {
    "classification": Format((("{text}",),)),
    "entailment": Format((("{premise}", "{hypothesis}"),)),
    "similarity": Format((("{first}", "{second}"), ("{second}", "{first}"))),
    "multiple_choice": Format((("{context}", "{choice}"),)),
}


def named_format(name: str) -> Format:
    """The format of a kind; UsageError with the nearest name where there is none."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}", cure=suggest(name, FORMATS))
    return FORMATS[name]
