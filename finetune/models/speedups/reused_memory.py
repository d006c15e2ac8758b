"""Memory that is used again."""

import torch
from torch import Tensor


class ReusedMemory:
    """Tensors for intermediate results, in memory that is kept from one call to the next.

    glibc returns large blocks to the system, and requests them again page by page. For the LM loss
    over GPT-2's vocabulary in bfloat16 that is a quarter of the time. On a GPU, whose allocator
    keeps memory itself, every tensor is new.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns (rows, columns) on the device of `like`, with any content.

        The tensor that was taken before under the same name must no longer be used.
        """
        size, kept = rows * columns, self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype:
            kept = torch.empty(size, dtype=dtype, device=like.device)
            if like.device.type == "cpu":
                self._kept[name] = kept
        return kept[:size].view(rows, columns)
