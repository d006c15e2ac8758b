"""Windows: how a text that is longer than a model reads is read in overlapping parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Windows:
    """Reads a long text in windows, whose logits are reduced to those of the example."""

    stride: int = 128
    """Tokens from the start of a window to the start of the next one."""
    reduce: Literal["mean", "max"] = "mean"
    """How the logits of the windows become those of the example."""
    most: int = 16
    """Most windows of an example; what they do not reach is cut off."""

    def starts(self, length: int, size: int) -> list[int]:
        """Returns where the windows of a text begin.

        Args:
            length: Tokens of the text.
            size: Tokens of a window. Windows of a smaller size than the stride leave nothing out.

        >>> Windows(stride=4).starts(15, 6), Windows(stride=9).starts(15, 6)
        ([0, 4, 8, 12], [0, 6, 12])
        """
        step = min(self.stride, size)
        count = math.ceil(max(length - size, 0) / step) + 1
        return [step * n for n in range(min(count, self.most))]


def choose_windowed_text(
    views: Sequence[Sequence[str]], lengths: Mapping[str, int], kept: Mapping[str, int]
) -> str | None:
    """Returns the text that loses most tokens to truncation; None if none can be windowed.

    Only a text that all views contain is read in windows: of multiple choice the context.

    Args:
        views: The texts of each view.
        lengths: Tokens of each text.
        kept: Tokens of each text that truncation leaves.
    """
    shared = [text for text in views[0] if all(text in view for view in views)]
    cut = [text for text in shared if lengths[text] > kept[text] > 0]
    return max(cut, key=lambda text: lengths[text] - kept[text], default=None)
