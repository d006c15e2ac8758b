"""The tokens that the input transforms add to a base's vocabulary, and their embeddings."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TokenizersBackend

from task_formats import SpecialTokens

START, DELIMITER, EXTRACT, PAD = "<|start|>", "<|delimiter|>", "<|extract|>", "<|pad|>"
NewRows = Literal["copy", "mean", "random"]
_SEPARATOR = "<|endoftext|>"
"""What separates documents in the pre-training of GPT-2, Qwen, SmolLM and many others."""
_NOISE = 0.1
"""Noise of rows that start at the mean, relative to the standard deviation of the old rows.

These rows must differ from each other, but in a model whose embeddings are tied their logits must
stay where those of other tokens are: GPT-2's are far below 0, and a row drawn from N(0, 0.02) would
take nearly all probability in the LM loss.
"""


@dataclass(frozen=True)
class TaskTokens:
    """A tokenizer and the ids of the tokens that the input transforms need."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens: SpecialTokens
    pad_id: int

    @classmethod
    def add_to(cls, tokenizer: PreTrainedTokenizerBase) -> tuple["TaskTokens", list[str]]:
        """Adds the missing tokens to a tokenizer. Returns also the names of those that are new."""
        known = tokenizer.get_vocab()
        new = [token for token in (START, DELIMITER, EXTRACT) if token not in known]
        if new:
            tokenizer.add_tokens(new, special_tokens=True)
        # Padding must not look like text, so the pad token is never another token's double.
        others = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
        if tokenizer.pad_token is None or tokenizer.pad_token in others:
            new += [] if PAD in known else [PAD]
            tokenizer.add_special_tokens({"pad_token": PAD})
        ids = cast(list[int], tokenizer.convert_tokens_to_ids([START, DELIMITER, EXTRACT]))
        return cls(tokenizer, SpecialTokens(*ids), cast(int, tokenizer.pad_token_id)), new

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the tokenizer; None for one written in Python, which has no serial form."""
        return fingerprint_tokenizer(self.tokenizer)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts. Text that spells a special token stays ordinary text."""
        return tokenize(self.tokenizer, texts)


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of a tokenizer; None for one written in Python, which has no serial form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts, without special tokens. Uses all cores."""
    if not texts:
        return []
    options: dict[str, Any] = {
        "add_special_tokens": False,
        "split_special_tokens": True,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,
    }
    own = [getattr(type(tokenizer), name, None) for name in ("__call__", "_encode_plus")]
    if own != [TokenizersBackend.__call__, TokenizersBackend._encode_plus]:
        return cast(list[list[int]], tokenizer(list(texts), **options)["input_ids"])
    # This call switches truncation, padding and special tokens off; the others need only the ids.
    first = cast(list[int], tokenizer(texts[0], **options)["input_ids"])
    others = tokenizer.backend_tokenizer.encode_batch_fast(
        list(texts[1:]), add_special_tokens=False
    )
    return [first, *(encoding.ids for encoding in others)]


def find_special_token(tokenizer: PreTrainedTokenizerBase, *names: str) -> int | None:
    """The id of the first token that exists among `names` (bos, eos, pad) and then unk."""
    return _special_token(tokenizer, *names, "unk")


def find_start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts before every text, such as llama's <s>.

    Those that it puts after a text are not among them: a model does not go on after its end.
    """
    plain = tokenize(tokenizer, ["a"])[0]
    with_special = cast(list[int], tokenizer("a")["input_ids"])
    starts = range(len(with_special) - len(plain) + 1)
    found = (n for n in starts if with_special[n : n + len(plain)] == plain)
    return with_special[: next(found, 0)]


def add_embedding_rows(
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new_tokens: list[str],
    start: NewRows,
) -> None:
    """Resizes the embeddings to the tokenizer and initializes the rows of new tokens, in place.

    Args:
        decoder: The decoder to change.
        tokenizer: Its tokenizer, with the new tokens.
        new_tokens: Their names.
        start: "copy" copies the rows of tokens that the base uses alike: what separates documents
            for the start token, the newline for the others. "mean" takes the mean of the old rows
            plus small noise, and so does "copy" where the base has no such token. "random" draws
            from N(0, 0.02).
    """
    copied = _similar_tokens(tokenizer) if start == "copy" else {}
    rows = cast(nn.Embedding, decoder.get_input_embeddings()).weight.shape[0]
    ids = cast(list[int], tokenizer.convert_tokens_to_ids(new_tokens))
    old_rows = min(ids, default=rows)
    if len(tokenizer) > rows:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedding, output = decoder.get_input_embeddings(), decoder.get_output_embeddings()
    tables = [embedding.weight]  # (V, D)
    if output.weight is not embedding.weight:
        tables += [output.weight] if output.bias is None else [output.weight, output.bias]
    for table, (name, row) in product(tables, zip(new_tokens, ids, strict=True)):
        values = cast(Tensor, table).data
        if name in copied:
            values[row] = values[copied[name]]
        elif start == "random" and values.dim() > 1:
            values[row] = 0.02 * torch.randn_like(values[row])
        else:
            mean, deviation = values[:old_rows].mean(0), values[:old_rows].std(0)
            values[row] = mean + _NOISE * deviation * torch.randn_like(mean)


def _similar_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens of a base that are used as ours will be, as far as there are any."""
    ids = tokenize(tokenizer, ["\n"])[0]
    newline = ids[-1] if ids and ids[-1] != tokenizer.unk_token_id else None
    # Where the token at the start of texts begins a turn of a chat, documents are separated by
    # another one.
    separator = tokenizer.get_vocab().get(_SEPARATOR)
    found = {
        START: _special_token(tokenizer, "bos", "eos") if separator is None else separator,
        DELIMITER: newline,
        # What follows the end of a text has nothing to do with it, so states there say little.
        EXTRACT: _special_token(tokenizer, "eos", "bos") if newline is None else newline,
    }
    return {name: token for name, token in found.items() if token is not None}


def _special_token(tokenizer: PreTrainedTokenizerBase, *names: str) -> int | None:
    ids = (getattr(tokenizer, f"{name}_token_id") for name in names)
    return next((token for token in ids if isinstance(token, int)), None)
