"""The run that is exported."""

from pathlib import Path
from typing import NamedTuple

import torch

from finetune.evaluation.predictor import Predictor
from finetune.models.heads import LinearHead
from task_formats import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ExportSource(NamedTuple):
    """A finished run and its model, in float32 on the CPU."""

    run: Path
    model_folder: Path
    """The saved model: a transformers folder, with the head beside it."""
    predictor: Predictor
    precision: str
    """Of the exported weights: fp32 or bf16."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the exported weights."""
        return DTYPES[self.precision]

    def linear_head(self) -> LinearHead:
        """The head of the model.

        Raises:
            UsageError: It is more than a linear layer.
        """
        head = self.predictor.model.head
        if type(head) is not LinearHead:
            what = (
                f"this format holds a linear head, and this run has another, {type(head).__name__}"
            )
            raise UsageError(what, where=str(self.run), cure="Use --to onnx.")
        return head

    @property
    def family(self) -> str:
        """The name that transformers has for the decoder's architecture."""
        return str(self.predictor.base.decoder.config.model_type)
