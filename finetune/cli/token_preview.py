"""Encoded examples as text in a terminal: each token over the text that it stands for."""

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
    template_index: int | None
    """Position of its template in `list_templates`; None for S, D and E."""
    is_lm_target: bool = False
    is_unknown: bool = False
    is_read: bool = False
    """Whether the head reads the hidden state here."""


class TokenView(NamedTuple):
    """One view of an example."""

    tokens: list[PreviewToken]
    removed: dict[int, tuple[int, str]]
    """What truncation removed: index of the following token to number of tokens and text."""


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
    unknown = task_tokens.tokenizer.unk_token_id
    views = []
    for k, view in enumerate(task.format.render(example)):
        template_view = task.format.views[0 if task.format.is_multiple_choice else k]
        template_indices = [templates.index(template) for template in template_view]
        ids = [*encoded.prefix, *encoded.endings[k]]
        texts, removed = _align(ids, view, template_indices, task_tokens)
        tokens = [
            PreviewToken(text, index, place in targets, token == unknown, place in read)
            for place, (token, (text, index)) in enumerate(zip(ids, texts, strict=True), k * width)
        ]
        views.append(TokenView(tokens, removed))
    return views


def list_templates(format: Format) -> list[str]:
    """The templates of a format, each once, in order of first mention."""
    return list(dict.fromkeys(segment for view in format.views for segment in view))


def _align(
    ids: Sequence[int], view: ViewText, template_indices: Sequence[int], task_tokens: TaskTokens
) -> tuple[list[tuple[str, int | None]], dict[int, tuple[int, str]]]:
    """The text and template of each token of a view, and what truncation removed."""
    segments: list[list[int]] = [[]]
    for token in ids[1:-1]:
        if token == task_tokens.special_tokens.delimiter:
            segments.append([])
        else:
            segments[-1].append(token)
    aligned: list[tuple[str, int | None]] = [("S", None)]
    removed = {}
    for k, (segment, texts) in enumerate(zip(segments, view, strict=True)):
        aligned += [("D", None)] if k else []
        kept = count_kept_tokens(segment, task_tokens.tokenize(texts))
        for text, count in zip(texts, kept, strict=True):
            parts = split_at_tokens(task_tokens, text)
            aligned += [(part, template_indices[k]) for part in parts[:count]]
            if parts[count:]:
                removed[len(aligned)] = (len(parts) - count, "".join(parts[count:]))
    return [*aligned, ("E", None)], removed


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


def render_view(view: TokenView, colors: bool) -> Text:
    """Renders a view as one text; without colours, bars separate the tokens."""
    text = Text()
    previous, even = None, False
    for n, token in enumerate(view.tokens):
        if n in view.removed:
            count, removed = view.removed[n]
            removed = " ".join(removed.split())
            shown = removed[:_MAX_REMOVED_CHARACTERS]
            dots = "..." if len(removed) > len(shown) else ""
            text.append(f' <-{count}: "{shown}{dots}"> ', "red strike" if colors else "")
        if token.template_index is None:
            _append_special(text, token, colors)
        else:
            bar = previous is not None and n not in view.removed and not colors
            visible = token.text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
            style = _choose_style(token, token.template_index, bright=even) if colors else ""
            text.append("|" if bar else "").append(visible, style)
        previous, even = token.template_index, not even
    return text


def summarize(view: TokenView) -> str:
    """Token counts of a view in one line."""
    read = next((n for n, token in enumerate(view.tokens, 1) if token.is_read), 0)
    targets = sum(token.is_lm_target for token in view.tokens)
    removed = sum(count for count, _ in view.removed.values())
    summary = f"{len(view.tokens)} tokens, head reads token {read}, LM loss on {targets}"
    return f"{summary}, {removed} removed" if removed else summary


def render_legend(colors: bool, templates: Sequence[str]) -> Text:
    """Explains the colours and marks."""
    text = Text()
    names = {"S": "start", "D": "delimiter", "E": "extract: the head reads here"}
    for name, meaning in names.items():
        _append_special(text, PreviewToken(name, None), colors)
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


def _choose_style(token: PreviewToken, template_index: int, *, bright: bool) -> str:
    """The colour of the template; every second token is brighter so that token ends show."""
    if token.is_unknown:
        return "black on yellow"
    underline = " underline" if token.is_lm_target else ""
    return f"{'bright_' if bright else ''}{COLORS[template_index % len(COLORS)]}{underline}"
