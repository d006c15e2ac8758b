"""Sequence and token classification in transformers, with a tokenizer that writes S, D and E."""

from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, normalizers, processors
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from finetune.export.source import ExportSource
from finetune.models.task_tokens import TaskTokens
from task_formats import Example, Task, UsageError

_OTHERS = "Use --to standalone or --to onnx."
_RELATIVE_ERROR = 1e-6
"""Above it, what is folded into the norm is not the head's bias."""
_PROBLEM_TYPES = {
    "classes": "single_label_classification",
    "multi_label": "multi_label_classification",
    "scores": "regression",
}
"""Kind of label to what transformers calls it."""


def write_sequence_classification(source: ExportSource, folder: Path) -> None:
    """Writes a folder for `AutoModelForSequenceClassification` and its pipeline.

    The classes of transformers have no bias there: it is folded into the bias of the final norm.

    Raises:
        UsageError: The task has other inputs than a text or a pair, or the final norm has no bias.
    """
    model, layer = _load_classifier(source, AutoModelForSequenceClassification)
    head = source.linear_head()
    if head.bias is not None and not _has_bias(layer):
        ids = torch.tensor([list(source.predictor.base.task_tokens.special_tokens)])
        if not fold_bias(model, layer, head.bias, ids):
            raise UsageError(
                f"the head has a bias, which {source.family} cannot hold for sequence "
                "classification: its final norm has none",
                where=str(source.run),
                cure=f"{_list_formats(model)} Or train again with --set head.bias=false.",
            )
    _save(source, model, folder)


def write_token_classification(source: ExportSource, folder: Path) -> None:
    """Writes a folder for `AutoModelForTokenClassification`, to be read at the last token.

    Raises:
        UsageError: The task has other inputs than a text or a pair, or transformers has no such
            class for the family.
    """
    model, _ = _load_classifier(source, AutoModelForTokenClassification)
    _save(source, model, folder)


def text_fields(task: Task) -> list[str]:
    """The fields that are the text and, for a pair, the second text.

    Raises:
        UsageError: The task reads something else.
    """
    fields, views = list(task.format.fields), task.format.views
    view = tuple(f"{{{name}}}" for name in fields)
    if task.format.is_multiple_choice or len(fields) > 2 or views != (view,):
        what = "this format holds tasks that read one text or one pair of texts"
        reads = "choices" if task.format.is_multiple_choice else f"the views {views}"
        raise UsageError(f"{what}, and this task reads {reads}", cure=_OTHERS)
    return fields


def texts_of(task: Task, example: Example) -> list[str]:
    """The text or the pair of an example."""
    return [example.fields[name] for name in text_fields(task)]


def build_tokenizer(tokens: TaskTokens, max_tokens: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that writes `S text E` and `S text D second E`, as the model reads them.

    It removes blanks around a text, and text that spells a special token stays ordinary text. With
    `truncation=True` it cuts the longer text of a pair first, as gptft does. Where both are cut
    and the number of tokens is odd, the token that is left goes to the longer text; gptft gives it
    to the first in alphabetical order.

    Raises:
        UsageError: The tokenizer is written in Python.
    """
    tokenizer = tokens.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError("the base's tokenizer is written in Python", cure=_OTHERS)
    core = Tokenizer.from_str(backend.to_str())
    ids = list(tokens.special_tokens)
    start, delimiter, extract = names = cast(list[str], tokenizer.convert_ids_to_tokens(ids))
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {extract}",
        pair=f"{start} $A {delimiter} $B {extract}",
        special_tokens=list(zip(names, ids, strict=True)),
    )
    added = core.get_added_tokens_decoder().values()
    # Around added tokens that are found before normalization, Strip would remove inner blanks.
    if all(token.special or token.normalized for token in added):
        own = [core.normalizer] if core.normalizer else []
        core.normalizer = normalizers.Sequence([normalizers.Strip(), *own])
    marks: dict[str, Any] = {
        name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_tokens,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **marks,
    )


def _list_formats(model: PreTrainedModel) -> str:
    """The formats for a head with a bias, as a cure."""
    if type(model.config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return "Use --to token-classification, standalone or onnx."
    return _OTHERS


def _has_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias", None) is not None


def fold_bias(model: PreTrainedModel, layer: nn.Linear, bias: Tensor, ids: Tensor) -> bool:
    """Adds a bias to the logits through the bias of the norm before a layer that has none.

    W(h + δ) = Wh + b for δ = pinv(W)·b, which is exact where W has full row rank.

    Args:
        model: A classifier; the last layer norm of its decoder is changed in place.
        layer: Its (C, D) linear layer W, without a bias.
        bias: (C,) numbers to add to the logits.
        ids: (1, T) any token ids, to find the norm with.

    Returns:
        False if the decoder does not end with a layer norm that has a bias.

    Raises:
        UsageError: W does not have full row rank, and the bias is outside of its range.
    """
    norm, matrix = _find_final_norm(model, layer, ids)
    if norm is None:
        return False
    added = torch.linalg.pinv(matrix) @ bias.double()
    if (matrix @ added - bias).abs().max() > _RELATIVE_ERROR * bias.abs().max():
        what = "the rows of the head's weight are not independent, so its bias cannot be folded"
        raise UsageError(what, cure=_OTHERS)
    with torch.no_grad():
        norm.bias.add_(added)
    return True


def _find_final_norm(
    model: PreTrainedModel, layer: nn.Linear, ids: Tensor
) -> tuple[nn.LayerNorm | None, Tensor]:
    """The layer norm with a bias that ends the decoder, and the (C, D) map from it to the logits.

    OPT may have a projection between the norm and the logits.
    """
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []  # modules, their inputs and outputs
    kinds = (nn.LayerNorm, nn.Linear)
    handles = [
        module.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs[0], output)))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    matrix = layer.weight.detach().double()
    states = next(inputs for module, inputs, _ in seen if module is layer)
    for module, inputs, output in reversed(seen):
        if module is layer or not torch.equal(output, states):
            continue
        if isinstance(module, nn.LayerNorm):
            return (module if _has_bias(module) else None), matrix
        if isinstance(module, nn.Linear) and not _has_bias(module):
            matrix, states = matrix @ module.weight.detach().double(), inputs
    return None, matrix


def _load_classifier(source: ExportSource, auto: Any) -> tuple[PreTrainedModel, nn.Linear]:
    """The run's decoder under a class of transformers, and its layer with the head's weights."""
    text_fields(source.predictor.task)
    head, config = source.linear_head(), _describe_labels(source)
    try:
        model, info = auto.from_pretrained(
            source.model_folder,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=source.predictor.recipe.base.trust_remote_code,
        )
    except ValueError as error:
        what = f"transformers has no {auto.__name__} for {source.family}"
        raise UsageError(what, where=str(source.run), cure=_OTHERS) from error
    new = {name.rpartition(".")[0] for name in info["missing_keys"]}
    layer = model.get_submodule(new.pop()) if len(new) == 1 else None
    if not isinstance(layer, nn.Linear) or layer.weight.shape != head.weight.shape:
        what = f"{type(model).__name__} has another head than one linear layer"
        raise UsageError(what, where=str(source.run), cure=_OTHERS)
    with torch.no_grad():
        layer.weight.copy_(head.weight)
        if _has_bias(layer):
            layer.bias.copy_(torch.zeros(()) if head.bias is None else head.bias)
    return model.eval(), layer


def _describe_labels(source: ExportSource) -> PreTrainedConfig:
    """The decoder's configuration with labels and pad token."""
    task, tokens = source.predictor.task, source.predictor.base.task_tokens
    trust = source.predictor.recipe.base.trust_remote_code
    config = AutoConfig.from_pretrained(source.model_folder, trust_remote_code=trust)
    names = task.labels.names or ("score",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = _PROBLEM_TYPES[task.labels.kind]
    config.pad_token_id = config.get_text_config().pad_token_id = tokens.pad_id
    return config


def _save(source: ExportSource, model: PreTrainedModel, folder: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = build_tokenizer(
        source.predictor.base.task_tokens, source.predictor.encoder.max_tokens
    )
    cast(nn.Module, model).to(source.dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
