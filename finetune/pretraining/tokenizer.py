"""A byte-level BPE learned from text: any string has tokens, and they give it back whole."""

from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from task_formats import UsageError

END = "<|endoftext|>"
"""The token that stands before and after every document."""
FEWEST = 257
"""The 256 bytes and the end of text."""


def learn_tokenizer(
    texts: Iterable[str], vocabulary: int, positions: int
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens (GPT-2, section 2.2: BPE over bytes).

    The same texts give the same tokenizer, whatever the number of cores. It has an end-of-text
    token and no other: padding is the business of whoever pads. Fewer tokens come out where the
    text has no more pairs that occur twice. Raises UsageError for a vocabulary below 257.
    """
    if vocabulary < FEWEST:
        raise UsageError(
            f"a vocabulary of {vocabulary} cannot hold all bytes and the end of text",
            where="tokenizer.vocabulary",
            cure=f"Take {FEWEST} or more.",
        )
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(_encodable(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END,
        bos_token=END,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )


def _encodable(texts: Iterable[str]) -> Iterator[str]:
    """Nothing that spells the end of text teaches a merge: as plain text it is rare."""
    for text in texts:
        yield text.replace(END, " ")
