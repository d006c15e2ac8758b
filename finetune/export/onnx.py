"""Decoder and head as one ONNX graph, for every kind of task."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel

from finetune.export.source import ExportSource
from finetune.export.standalone import SCRIPTS, write_prediction_script
from finetune.models.heads import LinearHead
from finetune.optional_packages import require_package
from task_formats import UsageError

MODEL_FILE = "model.onnx"


class OnnxModel(nn.Module):
    """A decoder of transformers and a head, from padded token ids to logits."""

    def __init__(self, decoder: nn.Module, head: LinearHead) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes the logits of N examples of up to K views of up to T tokens.

        Args:
            input_ids: (N, K, T) token ids, padded on the right.
            attention_mask: (N, K, T) 1 for tokens, 0 for padding. A view without tokens is absent.

        Returns:
            (N, K) logits for choices, -inf where absent; else (N, C).
        """
        mask = attention_mask.flatten(0, 1)
        states = self.decoder(input_ids=input_ids.flatten(0, 1), attention_mask=mask)[0]
        last = (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        features = states.gather(1, last)[:, 0].unflatten(0, attention_mask.shape[:2])
        logits: Tensor = self.head(features, attention_mask.sum(-1) > 0)
        return logits


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides the exporter's progress, and its warnings of deprecations and missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx(source: ExportSource, folder: Path) -> None:
    """Writes `model.onnx`, the tokenizer and a `predict.py` that needs onnxruntime.

    Raises:
        UsageError: The packages of the extra `onnx` are missing, or torch cannot export the family.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_package(name, "onnx", "the format onnx")
    decoder = AutoModel.from_pretrained(
        source.model_folder,
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=source.predictor.recipe.base.trust_remote_code,
    )
    decoder.config.use_cache = False
    model = OnnxModel(decoder, source.predictor.model.head).eval()
    ids = torch.full((2, 2, 4), source.predictor.base.task_tokens.special_tokens.start)
    axes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                (ids, torch.ones_like(ids)),
                dynamo=True,
                dynamic_shapes=(axes, axes),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        what = f"torch cannot export {source.family} to ONNX: {str(error).splitlines()[0]}"
        raise UsageError(what, where=str(source.run), cure="Use --to standalone.") from error
    assert program is not None
    program.save(str(folder / MODEL_FILE))
    source.predictor.base.task_tokens.tokenizer.save_pretrained(folder)
    script = SCRIPTS.joinpath("predict_onnx.py").read_text(encoding="utf-8")
    write_prediction_script(source, folder, script)
