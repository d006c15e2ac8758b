"""Examples to token sequences: the input transformations of GPT-1 (section 3.3, figure 1)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from task_formats.errors import UsageError
from task_formats.example import Encoded, Example, SpecialTokens
from task_formats.formats import Format, ViewText
from task_formats.truncation import truncate_longest_first

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts to their token ids, without special tokens."""


class ViewEncoder:
    """Turns examples into K views `start text delimiter text ... extract`.

    Args:
        format: The views of an example.
        tokenize: Texts to token ids.
        specials: Ids of the start, delimiter and extract tokens.
        max_tokens: Maximum length of a view, special tokens included; longer texts are truncated.

    Raises:
        UsageError: `max_tokens` is too small for the special tokens and one token of text.
    """

    def __init__(
        self, format: Format, tokenize: Tokenize, specials: SpecialTokens, max_tokens: int
    ) -> None:
        minimum = max(len(view) for view in format.views) + 2
        if max_tokens < minimum:
            raise UsageError(
                f"max_tokens {max_tokens} is too small",
                cure=f"This format needs {minimum} or more.",
            )
        self.format, self.tokenize = format, tokenize
        self.specials, self.max_tokens = specials, max_tokens

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encodes examples, tokenizing every distinct text once, all in one call."""
        rendered = [self.format.render(example) for example in examples]
        texts = list(
            dict.fromkeys(chain.from_iterable(map(_pieces, chain.from_iterable(rendered))))
        )
        ids = dict(zip(texts, self.tokenize(texts), strict=True)) if texts else {}
        return [
            self._encode(example, views, ids)
            for example, views in zip(examples, rendered, strict=True)
        ]

    def _encode(
        self, example: Example, views: list[ViewText], ids: Mapping[str, Sequence[int]]
    ) -> Encoded:
        texts = [_pieces(view) for view in views]
        lengths = {text: len(ids[text]) for view in texts for text in view}
        limits = [self.max_tokens - len(view) - 1 for view in views]
        kept = truncate_longest_first(lengths, texts, limits)
        sequences = [
            self._join([[t for text in pieces for t in ids[text][: kept[text]]] for pieces in view])
            for view in views
        ]
        prefix, endings = split_common_prefix(sequences)
        truncated = sum(lengths[text] - kept[text] for text in lengths)
        return Encoded(example.id, prefix, endings, example.label, truncated)

    def _join(self, segments: Sequence[Sequence[int]]) -> list[int]:
        tokens = [self.specials.start]
        for k, segment in enumerate(segments):
            if k:
                tokens.append(self.specials.delimiter)
            tokens.extend(segment)
        tokens.append(self.specials.extract)
        return tokens


def _pieces(view: ViewText) -> list[str]:
    return [piece for segment in view for piece in segment]


def split_common_prefix(
    views: Sequence[Sequence[int]],
) -> tuple[Sequence[int], tuple[Sequence[int], ...]]:
    """Splits K sequences into their longest common prefix and K non-empty endings.

    >>> split_common_prefix([[1, 5, 6, 9], [1, 5, 7, 7, 9]])
    ([1, 5], ([6, 9], [7, 7, 9]))
    """
    first = views[0]
    if len(views) == 1:
        return first[:-1], (first[-1:],)
    longest = min(map(len, views)) - 1
    common = next(
        (t for t in range(longest) if any(view[t] != first[t] for view in views[1:])), longest
    )
    return first[:common], tuple(view[common:] for view in views)
