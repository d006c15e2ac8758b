"""An encoded example taken apart again: which text every token came from, and what it is for."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from finetune.batching.collate import collate
from finetune.cli.token_view import Piece, Segment, Token, TokenView
from finetune.models.pretrained import TaskTokens
from task_formats import Encoded, Example, Format, Task
from task_formats.formats import View as Words


class Mark(NamedTuple):
    """A token's id, and what training does with it."""

    id: int
    lm: bool
    read: bool


def dissect(
    example: Example, encoded: Encoded, task: Task, task_tokens: TaskTokens, *, lm: bool = True
) -> list[TokenView]:
    """The K views of an example, marked as the very batch says that training is given."""
    batch = collate([encoded], "separate")
    width = batch.tokens.shape[1]
    # In separate rows a target stands right behind the token that predicts it.
    targets = set((batch.lm_index[batch.token_weight > 0] + 1).tolist()) if lm else set()
    reads = set(batch.last_index[0].tolist())
    layout = task.format.lay_out(example)
    views = []
    for k, (ending, texts) in enumerate(zip(encoded.endings, layout, strict=True)):
        ids = enumerate([*encoded.prefix, *ending], k * width)
        marks = [Mark(token, at in targets, at in reads) for at, token in ids]
        views.append(_cut(marks, texts, _colors(task.format, k), task_tokens))
    return views


def list_templates(format: Format) -> list[str]:
    """What a format's texts are made of, each once, in order of first mention."""
    return list(dict.fromkeys(segment for view in format.views for segment in view))


def _colors(format: Format, k: int) -> list[int]:
    """Each text of view k as its place in `list_templates`: mirrored views keep their colours."""
    templates = list_templates(format)
    view = format.views[0] if format.chooses else format.views[k]
    return [templates.index(segment) for segment in view]


def _cut(
    marks: Sequence[Mark], texts: Words, colors: Sequence[int], task_tokens: TaskTokens
) -> TokenView:
    """One view, cut at its delimiters, each stretch laid over its own text."""
    last = len(marks) - 1
    bounds = [
        0,
        *(n for n in range(last) if marks[n].id == task_tokens.special_tokens.delimiter),
        last,
    ]
    inner = [marks[start + 1 : stop] for start, stop in itertools.pairwise(bounds)]
    segments = [
        _lay_over(stretch, pieces, color, task_tokens)
        for stretch, pieces, color in zip(inner, texts, colors, strict=True)
    ]
    start, *delimiters, extract = (
        Token("D" if 0 < at < last else "E" if at else "S", marks[at].lm, read=marks[at].read)
        for at in bounds
    )
    return TokenView(start, tuple(segments), tuple(delimiters), extract)


def _lay_over(
    marks: Sequence[Mark], texts: Sequence[str], color: int, task_tokens: TaskTokens
) -> Segment:
    """The tokens between two delimiters, each with the part of the text that it stands for."""
    ids = task_tokens.tokenize(texts)
    kept = split([mark.id for mark in marks], ids)
    rest, pieces = iter(marks), []
    for text, count in zip(texts, kept, strict=True):
        words = spell(task_tokens, text)
        pairs = zip(words[:count], itertools.islice(rest, count), strict=True)
        unknown = task_tokens.tokenizer.unk_token_id
        tokens = tuple(Token(word, mark.lm, mark.id == unknown, mark.read) for word, mark in pairs)
        pieces.append(Piece(tokens, len(words) - count, "".join(words[count:])))
    return Segment(tuple(pieces), color)


def split(ids: Sequence[int], whole: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens were kept of every piece, so that the kept ones joined are `ids`.

    >>> split([1, 2, 5], [[1, 2, 3], [5, 6]])
    [2, 1]
    """
    if not whole:
        return []
    first, *others = whole
    common = next((n for n, (a, b) in enumerate(zip(ids, first, strict=False)) if a != b), None)
    most = min(len(ids), len(first)) if common is None else common
    for count in range(most, -1, -1):
        rest = split(ids[count:], others)
        if count + sum(rest) == len(ids):
            return [count, *rest]
    return [most, *split(ids[most:], others)]


def spell(task_tokens: TaskTokens, text: str) -> list[str]:
    """The part of the text behind every token; together they are the text up to its last token."""
    if not task_tokens.tokenizer.is_fast:
        return [
            str(task_tokens.tokenizer.decode([number]))
            for number in task_tokens.tokenize([text])[0]
        ]
    found = task_tokens.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True,
        verbose=False,
    )  # fmt: skip
    pieces, end = [], 0
    # A character of several tokens stands with the first; a blank with the token after it.
    for _, stop in found["offset_mapping"]:
        pieces.append(text[end : max(stop, end)])
        end = max(stop, end)
    return pieces
