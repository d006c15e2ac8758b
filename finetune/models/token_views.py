"""Encoded examples aligned with their text: each token over the text that it stands for."""

from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from finetune.batching.collate import collate
from finetune.models.task_tokens import TaskTokens
from task_formats import Encoded, Example, Format, Task
from task_formats.truncation import truncate_longest_first
from task_formats.windows import choose_windowed_text


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
    later: Mapping[int, tuple[int, str]] = MappingProxyType({})
    """The same of what further windows read."""

    @property
    def removed_tokens(self) -> int:
        """Tokens that truncation removed."""
        return sum(number for number, _ in self.removed.values())

    @property
    def later_tokens(self) -> int:
        """Tokens that further windows read."""
        return sum(number for number, _ in self.later.values())


def make_token_views(
    example: Example,
    encoded: Encoded,
    task: Task,
    task_tokens: TaskTokens,
    max_tokens: int,
    *,
    with_lm: bool,
) -> list[TokenView]:
    """The K views of an example, truncated to `max_tokens`, marked as in a batch for training.

    Of a text that is read in windows they have the first one.
    """
    batch = collate([encoded], "separate")
    width = batch.tokens.shape[1]
    # In separate rows a target directly follows the token that predicts it.
    targets = set((batch.lm_index[batch.token_weight > 0] + 1).tolist()) if with_lm else set()
    read = set(batch.last_index[0].tolist())
    unknown = task_tokens.tokenizer.unk_token_id
    rendered = task.format.render(example)
    texts = [list(chain.from_iterable(view)) for view in rendered]
    parts = {text: split_at_tokens(task_tokens, text) for text in chain.from_iterable(texts)}
    lengths = {text: len(tokens) for text, tokens in parts.items()}
    limits = [max_tokens - len(view) - 1 for view in rendered]
    kept = truncate_longest_first(lengths, texts, limits)
    ends = dict(kept)
    if task.windows and (long := choose_windowed_text(texts, lengths, kept)) is not None:
        ends[long] = task.windows.starts(lengths[long], kept[long])[-1] + kept[long]
    templates = list_templates(task.format)
    views = []
    for k, view in enumerate(rendered):
        aligned: list[tuple[str, int | None]] = []
        removed: dict[int, tuple[int, str]] = {}
        later: dict[int, tuple[int, str]] = {}
        template_view = task.format.views[0 if task.format.is_multiple_choice else k]
        for template, segment in zip(template_view, view, strict=True):
            aligned.append(("D" if aligned else "S", None))
            for text in segment:
                start, end = kept[text], ends[text]
                aligned += [(part, templates.index(template)) for part in parts[text][:start]]
                for found, rest in ((later, parts[text][start:end]), (removed, parts[text][end:])):
                    if rest:
                        found[len(aligned)] = (len(rest), "".join(rest))
        aligned.append(("E", None))
        ids = [*encoded.prefix, *encoded.endings[k]]
        tokens = [
            PreviewToken(text, index, place in targets, token == unknown, place in read)
            for place, (token, (text, index)) in enumerate(
                zip(ids, aligned, strict=True), k * width
            )
        ]
        views.append(TokenView(tokens, removed, later))
    return views


def list_templates(format: Format) -> list[str]:
    """The templates of a format, each once, in order of first mention."""
    return list(dict.fromkeys(segment for view in format.views for segment in view))


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
