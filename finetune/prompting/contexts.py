"""How a base's tokenizer begins a text, and where it ends a context."""

from functools import partial

from transformers import PreTrainedTokenizerBase

from finetune.models.pretrained import find_special_token, tokenize
from task_formats import Boundary


def find_boundary(tokenizer: PreTrainedTokenizerBase) -> Boundary:
    """How a tokenizer's contexts and answers are told apart, as lm-evaluation-harness does.

    Tokens that it puts before every text (llama's <s>) stand before every context; one without
    text is its start or end-of-text token.
    """
    plain = tokenize(tokenizer, ["a"])[0]
    usual: list[int] = tokenizer("a")["input_ids"]
    before = len(usual) - len(plain)
    start = usual[:before] if before > 0 and usual[before:] == plain else []
    empty = find_special_token(tokenizer, "bos", "eos")
    return Boundary(partial(tokenize, tokenizer), tuple(start), empty or 0)
