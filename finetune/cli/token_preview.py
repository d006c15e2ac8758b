"""Encoded examples as text in a terminal: each token over the text that it stands for."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from finetune.batching.collate import collate
from finetune.models.task_tokens import TaskTokens
from task_formats import Encoded, Example, Format, Task
from task_formats.formats import ViewText

COLORS = ("cyan", "green", "magenta", "yellow")
"""Colours of the templates of a format, in order of first mention."""
_SPECIAL_STYLES = {"S": "black on white", "D": "black on white", "E": "bold white on blue"}
_MAX_REMOVED_CHARACTERS = 60
"""Characters shown of removed text."""


class PreviewToken(NamedTuple):
    """One token of a view."""

    text: str
    """The text that it stands for, or S, D, E."""
    is_lm_target: bool = False
    is_unknown: bool = False
    is_read: bool = False
    """Whether the head reads the hidden state here."""


class PreviewText(NamedTuple):
    """The tokens of one text, and what truncation has removed from its end."""

    tokens: tuple[PreviewToken, ...]
    removed_tokens: int = 0
    removed_text: str = ""


class Segment(NamedTuple):
    """The texts between two special tokens."""

    texts: tuple[PreviewText, ...]
    template_index: int = 0
    """Position in `list_templates`: mirrored views show a text in the same colour."""


class TokenView(NamedTuple):
    """One view: S, the segments with D between them, E."""

    start: PreviewToken
    segments: tuple[Segment, ...]
    delimiters: tuple[PreviewToken, ...]
    extract: PreviewToken

    @property
    def tokens(self) -> tuple[PreviewToken, ...]:
        """All tokens in order."""
        tokens = [self.start]
        for k, segment in enumerate(self.segments):
            tokens += [self.delimiters[k - 1]] if k else []
            tokens += (token for text in segment.texts for token in text.tokens)
        return (*tokens, self.extract)


class _MarkedToken(NamedTuple):
    id: int
    is_lm_target: bool
    is_read: bool


# -- from an encoded example to its views ---------------------------------------------------------


def make_token_views(
    example: Example,
    encoded: Encoded,
    task: Task,
    task_tokens: TaskTokens,
    *,
    with_lm: bool = True,
) -> list[TokenView]:
    """Makes the K views of an example, marked as the batch for training marks them.

    Args:
        example: The texts.
        encoded: The same example as token ids.
        task: Gives the format.
        task_tokens: Gives the tokenizer and the special tokens.
        with_lm: Whether the language-model loss is part of the objective.
    """
    batch = collate([encoded], "separate")
    width = batch.tokens.shape[1]
    # In separate rows a target directly follows the token that predicts it.
    targets = set((batch.lm_index[batch.token_weight > 0] + 1).tolist()) if with_lm else set()
    read = set(batch.last_index[0].tolist())
    templates = list_templates(task.format)
    views = []
    for k, (ending, texts) in enumerate(
        zip(encoded.endings, task.format.render(example), strict=True)
    ):
        ids = enumerate([*encoded.prefix, *ending], k * width)
        tokens = [_MarkedToken(token, index in targets, index in read) for index, token in ids]
        segments = task.format.views[0 if task.format.is_multiple_choice else k]
        colors = [templates.index(segment) for segment in segments]
        views.append(_make_view(tokens, texts, colors, task_tokens))
    return views


def list_templates(format: Format) -> list[str]:
    """The templates of a format, each once, in order of first mention."""
    return list(dict.fromkeys(segment for view in format.views for segment in view))


def _make_view(
    tokens: Sequence[_MarkedToken], texts: ViewText, colors: Sequence[int], task_tokens: TaskTokens
) -> TokenView:
    """Splits one view at its delimiters."""
    last = len(tokens) - 1
    delimiter = task_tokens.special_tokens.delimiter
    bounds = [0, *(n for n in range(last) if tokens[n].id == delimiter), last]
    segments = tuple(
        _make_segment(tokens[start + 1 : stop], pieces, color, task_tokens)
        for (start, stop), pieces, color in zip(
            itertools.pairwise(bounds), texts, colors, strict=True
        )
    )
    names = ["S", *"D" * (len(bounds) - 2), "E"]
    start, *delimiters, extract = (
        PreviewToken(name, tokens[n].is_lm_target, is_read=tokens[n].is_read)
        for name, n in zip(names, bounds, strict=True)
    )
    return TokenView(start, segments, tuple(delimiters), extract)


def _make_segment(
    tokens: Sequence[_MarkedToken], texts: Sequence[str], color: int, task_tokens: TaskTokens
) -> Segment:
    """Assigns the tokens between two special tokens to the texts that they stand for."""
    kept = count_kept_tokens([token.id for token in tokens], task_tokens.tokenize(texts))
    unknown = task_tokens.tokenizer.unk_token_id
    remaining = iter(tokens)
    pieces = []
    for text, count in zip(texts, kept, strict=True):
        words = split_at_tokens(task_tokens, text)
        shown = tuple(
            PreviewToken(word, token.is_lm_target, token.id == unknown, token.is_read)
            for word, token in zip(words[:count], itertools.islice(remaining, count), strict=True)
        )
        pieces.append(PreviewText(shown, len(words) - count, "".join(words[count:])))
    return Segment(tuple(pieces), color)


def count_kept_tokens(ids: Sequence[int], texts: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens truncation kept of each text, so that the kept tokens joined are `ids`.

    >>> count_kept_tokens([1, 2, 5], [[1, 2, 3], [5, 6]])
    [2, 1]
    """
    if not texts:
        return []
    first, *others = texts
    common = next((n for n, (a, b) in enumerate(zip(ids, first, strict=False)) if a != b), None)
    most = min(len(ids), len(first)) if common is None else common
    for count in range(most, -1, -1):
        rest = count_kept_tokens(ids[count:], others)
        if count + sum(rest) == len(ids):
            return [count, *rest]
    return [most, *count_kept_tokens(ids[most:], others)]


def split_at_tokens(task_tokens: TaskTokens, text: str) -> list[str]:
    """Splits a text into the parts that its tokens stand for."""
    tokenizer = task_tokens.tokenizer
    if not tokenizer.is_fast:
        return [str(tokenizer.decode([token])) for token in task_tokens.tokenize([text])[0]]
    offsets = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )["offset_mapping"]
    parts, end = [], 0
    # A character of several tokens belongs to the first; a space to the token after it.
    for _, stop in offsets:
        parts.append(text[end : max(stop, end)])
        end = max(stop, end)
    return parts


# -- from a view to text --------------------------------------------------------------------------


def render_view(view: TokenView, colors: bool) -> Text:
    """Renders a view as one text; without colours, bars separate the tokens."""
    text = Text()
    _append_special(text, view.start, colors)
    for k, segment in enumerate(view.segments):
        if k:
            _append_special(text, view.delimiters[k - 1], colors)
        for piece in segment.texts:
            _append_text(text, piece, segment.template_index, colors)
    _append_special(text, view.extract, colors)
    return text


def summarize(view: TokenView) -> str:
    """Token counts of a view in one line."""
    tokens = view.tokens
    read = next((n + 1 for n, token in enumerate(tokens) if token.is_read), 0)
    targets = sum(token.is_lm_target for token in tokens)
    removed = sum(text.removed_tokens for segment in view.segments for text in segment.texts)
    summary = f"{len(tokens)} tokens, head reads token {read}, LM loss on {targets}"
    return f"{summary}, {removed} removed" if removed else summary


def render_legend(colors: bool, templates: Sequence[str]) -> Text:
    """Explains the colours and marks."""
    text = Text()
    names = {"S": "start", "D": "delimiter", "E": "extract: the head reads here"}
    for name, meaning in names.items():
        _append_special(text, PreviewToken(name), colors)
        text.append(f"{' ' if colors else ''}{meaning}   ")
    if not colors:
        return text.append('| between tokens   <-3: "..."> three tokens removed')
    text.append("\n")
    for k, template in enumerate(templates):
        text.append(f" {template} ", COLORS[k % len(COLORS)])
    text.append("  ").append("underlined", "underline").append(": target of the LM loss   ")
    text.append("crossed out", "red strike").append(": removed by truncation   ")
    return text.append("highlighted", "black on yellow").append(": unknown token")


def _append_special(text: Text, token: PreviewToken, colors: bool) -> None:
    if colors:
        underline = " underline" if token.is_lm_target else ""
        text.append(f" {token.text} ", _SPECIAL_STYLES[token.text] + underline)
    else:
        space = "" if not text or text.plain.endswith((" ", "\n")) else " "
        text.append(f"{space}[{token.text}] ")


def _append_text(text: Text, piece: PreviewText, color: int, colors: bool) -> None:
    for n, token in enumerate(piece.tokens):
        text.append("|" if n and not colors else "")
        visible = token.text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
        text.append(visible, _choose_style(token, color, n) if colors else "")
    if piece.removed_tokens:
        removed = " ".join(piece.removed_text.split())
        shown = removed[:_MAX_REMOVED_CHARACTERS]
        dots = "..." if len(removed) > len(shown) else ""
        text.append(f' <-{piece.removed_tokens}: "{shown}{dots}"> ', "red strike" if colors else "")


def _choose_style(token: PreviewToken, color: int, n: int) -> str:
    """The segment's colour; every second token is brighter so that token ends are visible."""
    if token.is_unknown:
        return "black on yellow"
    underline = " underline" if token.is_lm_target else ""
    return f"{'bright_' if n % 2 else ''}{COLORS[color % len(COLORS)]}{underline}"
