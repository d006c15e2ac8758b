"""Views of an example as text in a terminal."""

from collections.abc import Sequence

from rich.text import Text

from finetune.models.token_views import TokenView

_COLORS = ("cyan", "green", "magenta", "yellow")
"""Colours of the templates of a format, in order of first mention."""
_SPECIAL_STYLES = {"S": "black on white", "D": "black on white", "E": "bold white on blue"}
_MAX_REMOVED_CHARACTERS = 60
"""Characters shown of removed text."""


def render_view(view: TokenView) -> Text:
    """Renders a view as one text: a bar between tokens, a colour for each template."""
    text, previous = Text(), None
    for n, token in enumerate(view.tokens):
        if n in view.removed:
            number, removed = view.removed[n]
            shown = " ".join(removed.split())[:_MAX_REMOVED_CHARACTERS]
            text.append(f' <-{number}: "{shown}"> ', "red strike")
        underline = " underline" if token.is_lm_target else ""
        if token.template_index is None:
            space = "" if not text or text.plain.endswith(" ") else " "
            style = _SPECIAL_STYLES[token.text] + underline
            text.append(space).append(f"[{token.text}]", style).append(" ")
        else:
            text.append("|" if previous is not None and n not in view.removed else "")
            visible = token.text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
            color = _COLORS[token.template_index % len(_COLORS)] + underline
            text.append(visible, "black on yellow" if token.is_unknown else color)
        previous = token.template_index
    return text


def summarize(view: TokenView) -> str:
    """Token counts of a view in one line."""
    read = next((n for n, token in enumerate(view.tokens, 1) if token.is_read), 0)
    targets = sum(token.is_lm_target for token in view.tokens)
    removed, later = view.removed_tokens, view.later_tokens
    summary = f"{len(view.tokens)} tokens, head reads token {read}, LM loss on {targets}"
    summary += f", {later} more in further windows" if later else ""
    return f"{summary}, {removed} removed" if removed else summary


def render_legend(templates: Sequence[str]) -> Text:
    """Explains the marks, and with templates the colours."""
    text = Text()
    names = {"S": "start", "D": "delimiter", "E": "extract: the head reads here"}
    for name, meaning in names.items():
        text.append(f"[{name}]", _SPECIAL_STYLES[name]).append(f" {meaning}   ")
    text.append('| between tokens   <-3: "..."> three tokens removed')
    if templates:
        text.append("\n")
        for k, template in enumerate(templates):
            text.append(f"{template} ", _COLORS[k % len(_COLORS)])
        text.append("  ").append("underlined", "underline").append(": target of the LM loss   ")
        text.append("highlighted", "black on yellow").append(": unknown token")
    return text
