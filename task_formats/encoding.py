"""Examples to token sequences: the input transformations of GPT-1 (section 3.3, figure 1)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from task_formats.errors import UsageError
from task_formats.example import Encoded, Example, SpecialTokens
from task_formats.formats import Format, ViewText
from task_formats.truncation import truncate_longest_first
from task_formats.windows import Windows, choose_windowed_text

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts to their token ids, without special tokens."""


class RenderedBatch(NamedTuple):
    """N examples as text."""

    examples: Sequence[Example]
    views: list[list[ViewText]]
    """The views of each example."""
    texts: list[str]
    """The distinct texts of all views."""


class ViewEncoder:
    """Turns examples into K views `start text delimiter text ... extract`.

    Texts are truncated so that a view has at most `max_tokens`, special tokens included; UsageError
    if there is no space for one token of text. With `windows` the text that truncation would cut
    most is read in windows instead, each as long as what truncation would leave of it.
    """

    def __init__(
        self,
        format: Format,
        tokenize: Tokenize,
        specials: SpecialTokens,
        max_tokens: int,
        windows: Windows | None = None,
    ) -> None:
        minimum = max(len(view) for view in format.views) + 2
        if max_tokens < minimum:
            what = f"max_tokens {max_tokens} is too small"
            raise UsageError(what, cure=f"This format needs {minimum} or more.")
        self.format, self.tokenize = format, tokenize
        self.specials, self.max_tokens = specials, max_tokens
        self.windows = windows

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encodes examples, tokenizing every distinct text once, all in one call."""
        batch = self.render(examples)
        return self.assemble(batch, self.tokenize(batch.texts) if batch.texts else [])

    def render(self, examples: Sequence[Example]) -> RenderedBatch:
        """Returns the texts of examples: the step of `encode` before tokenizing."""
        views = [self.format.render(example) for example in examples]
        pieces = (piece for layout in views for view in layout for piece in chain(*view))
        return RenderedBatch(examples, views, list(dict.fromkeys(pieces)))

    def assemble(self, batch: RenderedBatch, tokens: Sequence[Sequence[int]]) -> list[Encoded]:
        """Encodes examples with the token ids of `batch.texts`: the last step of `encode`."""
        ids = dict(zip(batch.texts, tokens, strict=True))
        return [
            self._assemble(example, views, ids)
            for example, views in zip(batch.examples, batch.views, strict=True)
        ]

    def _assemble(
        self, example: Example, views: list[ViewText], ids: Mapping[str, Sequence[int]]
    ) -> Encoded:
        texts = [list(chain(*view)) for view in views]
        lengths = {text: len(ids[text]) for view in texts for text in view}
        limits = [self.max_tokens - len(view) - 1 for view in views]
        kept = truncate_longest_first(lengths, texts, limits)
        truncated = sum(lengths.values()) - sum(kept.values())
        starts, long = [0], None
        if self.windows and (long := choose_windowed_text(texts, lengths, kept)) is not None:
            starts = self.windows.starts(lengths[long], kept[long])
            truncated -= min(lengths[long], starts[-1] + kept[long]) - kept[long]

        def read(text: str, start: int) -> Sequence[int]:
            start = start if text == long else 0
            return ids[text][start : start + kept[text]]

        sequences = [
            self._join([[read(text, start) for text in pieces] for pieces in view])
            for start in starts
            for view in views
        ]
        prefix, endings = split_common_prefix(sequences)
        return Encoded(example.id, prefix, endings, example.label, truncated, len(starts))

    def _join(self, segments: Sequence[Sequence[Sequence[int]]]) -> list[int]:
        tokens = [self.specials.start]
        for pieces in segments:
            for piece in pieces:
                tokens += piece
            tokens.append(self.specials.delimiter)
        tokens[-1] = self.specials.extract
        return tokens


def split_common_prefix(views: Sequence[list[int]]) -> tuple[list[int], tuple[list[int], ...]]:
    """Splits K sequences into their longest common prefix and K non-empty endings.

    >>> split_common_prefix([[1, 5, 6, 9], [1, 5, 7, 7, 9]])
    ([1, 5], ([6, 9], [7, 7, 9]))
    """
    if len(views) == 1:
        return views[0][:-1], (views[0][-1:],)
    longest = min(map(len, views)) - 1
    # What the first and the last in lexicographic order have in common, all have in common.
    first, last = min(views), max(views)
    common = next((t for t in range(longest) if first[t] != last[t]), longest)
    return views[0][:common], tuple(view[common:] for view in views)
