"""Parameters and training FLOPs of the decoders that `gptft pretrain` makes.

A multiplication and an addition are two FLOPs, the backward pass costs twice the forward pass, and
only matrix products count: norms, activations and the optimizer are left out, as in Kaplan et al.
(2020), section 2.1.
"""

from typing import NamedTuple

from finetune.pretraining.plan import ShapeConfig

_BACKWARD_AND_FORWARD = 3


class Parameters(NamedTuple):
    """Numbers of parameters."""

    blocks: int
    """Kaplan's N: the blocks and the last norm, with biases and gains."""
    embeddings: int
    """Token and position embeddings."""
    output: int
    """The output layer, if it is not tied to the token embeddings."""

    @property
    def total(self) -> int:
        """All parameters: the N of Hoffmann et al."""
        return sum(self)


class Flops(NamedTuple):
    """Training FLOPs. Reading an embedding costs none."""

    layers: float
    """Products with the weights of the blocks."""
    attention: float
    """Scores and weighted values. A token attends to itself and to those before it."""
    output: float
    """The output layer, computed for the targets only."""

    @property
    def total(self) -> float:
        """All training FLOPs."""
        return sum(self)


def count_parameters(shape: ShapeConfig, vocabulary: int) -> Parameters:
    """Counts the parameters of a decoder with a vocabulary of V tokens."""
    width, is_llama = shape.width, shape.style == "llama"
    matrices = count_matrix_weights(shape)
    if is_llama:
        norms, biases, last_norm = 2 * width, 0, width
    else:
        norms, biases = 4 * width, 3 * width + width + find_feed_forward(shape) + width
        last_norm = 0 if shape.style == "gpt1" else 2 * width
    return Parameters(
        shape.layers * (matrices + norms + biases) + last_norm,
        width * (vocabulary + (0 if is_llama else shape.positions)),
        0 if shape.tied else width * vocabulary,
    )


def count_flops(shape: ShapeConfig, vocabulary: int, blocks: float, length: float) -> Flops:
    """Counts the FLOPs of training on text.

    Args:
        shape: The decoder.
        vocabulary: Its number of tokens V.
        blocks: Blocks of text read.
        length: Tokens of a block. All but the first are predicted.
    """
    factor = 2 * _BACKWARD_AND_FORWARD * blocks
    pairs = length * (length + 1) / 2  # of a token and one that it attends to
    return Flops(
        factor * length * shape.layers * count_matrix_weights(shape),
        factor * pairs * shape.layers * 2 * shape.width,
        factor * (length - 1) * shape.width * vocabulary,
    )


def count_matrix_weights(shape: ShapeConfig) -> int:
    """Weights of the matrices of one block."""
    width, inner = shape.width, find_feed_forward(shape)
    if shape.style != "llama":
        return 4 * width**2 + 2 * width * inner
    keys_and_values = 2 * width * (shape.key_value_heads or shape.heads) * (width // shape.heads)
    return 2 * width**2 + keys_and_values + 3 * width * inner


def find_feed_forward(shape: ShapeConfig) -> int:
    """Inner width of the feed-forward layers."""
    if shape.feed_forward:
        return shape.feed_forward
    return -(-8 * shape.width // 3 // 64) * 64 if shape.style == "llama" else 4 * shape.width
