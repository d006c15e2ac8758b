"""torch.compile for a decoder's blocks, once for all lengths."""

import os
import shutil
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from finetune.models.speedups.last_token import find_blocks
from task_formats import UsageError


def compile_blocks(
    decoder: PreTrainedModel, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Has every block but the last compiled when it first runs; names and weights stay.

    Attention stays as it is: how many sequences a row holds differs from one forward pass to the
    next, so it breaks the graph of a block into what comes before and after. The last block, which
    may leave off in the middle, is left alone. UsageError where there is nothing to compile, or
    nothing to compile it with.
    """
    blocks = find_blocks(decoder)
    if blocks is None or len(blocks) < 2:
        raise UsageError(
            f"the blocks of this base ({decoder.config.model_type}) are not told apart",
            where="train.compile",
            cure="Train it without --compile.",
        )
    names = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
    if backend == "inductor" and not any(map(shutil.which, names)):
        raise UsageError(
            "torch.compile needs a C++ compiler, and there is none",
            where="train.compile",
            cure="Install g++, or train without --compile.",
        )
    for block in list(blocks)[:-1]:
        block.compile(dynamic=True, backend=backend)
