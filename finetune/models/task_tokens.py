"""Our tokens in another's vocabulary: their names, their ids and their first embeddings."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

START, DELIMITER, EXTRACT, PAD = "<|start|>", "<|delimiter|>", "<|extract|>", "<|pad|>"
_NOISE = 0.1
"""Spread of new rows round the mean of the old ones, as a part of the old ones' own spread.

What counts is that they differ from each other while their logits stay where an average word's
are (facts, trap 5)."""


def add_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Adds what is missing of our tokens; gives the names of the new ones."""
    known = tokenizer.get_vocab()
    fresh = [token for token in (START, DELIMITER, EXTRACT) if token not in known]
    if fresh:
        tokenizer.add_tokens(fresh, special_tokens=True)
    # A pad token that doubles as another one would be read as text (facts, trap 1).
    others = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    if tokenizer.pad_token is None or tokenizer.pad_token in others:
        fresh += [] if PAD in known else [PAD]
        tokenizer.add_special_tokens({"pad_token": PAD})
    return fresh


def add_embedding_rows(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fresh: list[str], drawn: bool
) -> None:
    """Gives every token a row, and the new ones their first values."""
    rows = cast(nn.Embedding, decoder.get_input_embeddings()).weight.shape[0]
    ids = cast(list[int], tokenizer.convert_tokens_to_ids(fresh))
    old = min(ids, default=rows)
    if len(tokenizer) > rows:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for weight in _tables(decoder):
        _initialize(weight.data, ids, old, drawn)


def _tables(decoder: PreTrainedModel) -> list[Tensor]:
    """The embedding and, where it is not the same tensor, the output layer with its bias."""
    embedding = cast(nn.Embedding, decoder.get_input_embeddings()).weight
    output = decoder.get_output_embeddings()
    if output is None or output.weight is embedding:
        return [embedding]
    bias = getattr(output, "bias", None)
    return [embedding, cast(Tensor, output.weight)] + ([] if bias is None else [bias])


def _initialize(table: Tensor, ids: list[int], old: int, drawn: bool) -> None:
    """(V, D) or (V,): rows `ids` drawn from N(0, 0.02), or near the mean of the first `old`."""
    for row in ids:
        if drawn and table.dim() > 1:
            table[row] = 0.02 * torch.randn_like(table[row])
        else:
            mean, spread = table[:old].mean(0), table[:old].std(0)
            table[row] = mean + _NOISE * spread * torch.randn_like(mean)
