"""Learns a byte-level BPE tokenizer, which encodes any text without loss."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""Stands before, between and after documents."""


def learn_tokenizer(
    texts: Iterable[str], vocabulary_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """Learns a tokenizer (GPT-2, section 2.2) with an end-of-text token and no other special token.

    There are fewer tokens than `vocabulary_size` if no more pairs occur twice. `max_length` is the
    maximum sequence length that is saved with the tokenizer. The result does not depend on the
    number of cores.
    """
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # An end of text that is spelled out in a text must not become a token.
    model.train_from_iterator((text.replace(END_OF_TEXT, " ") for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
