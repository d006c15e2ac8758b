"""From examples to token sequences: the input transforms of GPT-1 (section 3.3, figure 1)."""

from collections.abc import Callable, Sequence
from itertools import chain

from task_formats.errors import UsageError
from task_formats.example import Encoded, Example, SpecialTokens
from task_formats.formats import Format, View
from task_formats.truncation import fit

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
"""Many texts to their token ids, no special tokens added."""


class ViewEncoder:
    """Turns examples into K views `S text D text ... E`, kept as one prefix and K endings.

    Raises UsageError where `max_tokens` cannot hold the special tokens and one token more.
    """

    def __init__(
        self, format: Format, tokenize: Tokenize, specials: SpecialTokens, max_tokens: int
    ) -> None:
        fewest = max(len(view) for view in format.views) + 2
        if max_tokens < fewest:
            raise UsageError(
                f"max_tokens {max_tokens} is too small", cure=f"This format needs {fewest} or more."
            )
        self.format, self.tokenize = format, tokenize
        self.specials, self.max_tokens = specials, max_tokens

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """All examples, tokenised in one call; every text of an example is tokenised once."""
        layouts = [self.format.lay_out(example) for example in examples]
        texts = list(dict.fromkeys(chain.from_iterable(map(_texts, chain.from_iterable(layouts)))))
        ids = dict(zip(texts, self.tokenize(texts), strict=True)) if texts else {}
        return [
            self._encode(example, views, ids)
            for example, views in zip(examples, layouts, strict=True)
        ]

    def _encode(
        self, example: Example, layout: list[View], ids: dict[str, Sequence[int]]
    ) -> Encoded:
        texts = [_texts(view) for view in layout]
        lengths = {text: len(ids[text]) for view in texts for text in view}
        room = [self.max_tokens - len(view) - 1 for view in layout]
        kept = fit(lengths, texts, room)
        views = [
            self._view([[t for text in pieces for t in ids[text][: kept[text]]] for pieces in view])
            for view in layout
        ]
        prefix, endings = split_common_prefix(views)
        cut = sum(lengths[text] - kept[text] for text in lengths)
        return Encoded(example.id, prefix, endings, example.label, cut)

    def _view(self, segments: Sequence[Sequence[int]]) -> list[int]:
        view = [self.specials.start]
        for k, segment in enumerate(segments):
            if k:
                view.append(self.specials.delimiter)
            view.extend(segment)
        view.append(self.specials.extract)
        return view


def _texts(view: View) -> list[str]:
    """All pieces of a view, in order."""
    return [text for pieces in view for text in pieces]


def split_common_prefix(
    views: Sequence[Sequence[int]],
) -> tuple[Sequence[int], tuple[Sequence[int], ...]]:
    """The longest common prefix that leaves every view its last token, and the K rests.

    >>> split_common_prefix([[1, 5, 6, 9], [1, 5, 7, 7, 9]])
    ([1, 5], ([6, 9], [7, 7, 9]))
    """
    first = views[0]
    if len(views) == 1:
        return first[:-1], (first[-1:],)
    shortest = min(len(view) for view in views) - 1
    common = next(
        (t for t in range(shortest) if any(view[t] != first[t] for view in views[1:])), shortest
    )
    return first[:common], tuple(view[common:] for view in views)
