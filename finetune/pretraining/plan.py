"""What a pre-training run is told: the typed parts of a plan; its defaults are the paper's."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from finetune.recipe.schema import Epochs, Fraction, Positive, Seed, StrictModel, resume_safe


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _one_or_more(paths: tuple[str, ...]) -> tuple[str, ...]:
    if not paths:
        raise ValueError("names no file")
    return paths


Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One path or several."""


class CorpusConfig(StrictModel):
    """Where text comes from: files, folders and globs, or a `datasets` source."""

    train: Annotated[Paths, AfterValidator(_one_or_more)]
    """Files (.txt, .gz, .xz), folders of them, or globs; for a `datasets` source, splits."""
    evaluate: Paths = ()
    """The same for validation; empty evaluates nothing."""
    path: str | None = None
    """A data set on the hub or a local folder; then `train` and `evaluate` name its splits."""
    name: str | None = None
    """The configuration of a hub data set."""
    revision: str | None = None
    """The revision of a hub data set."""
    column: str = "text"
    """The column of a data set that holds the text; every row is a document."""
    shards: str | None = None
    """A folder that keeps tokenizer and token shards for other runs; else the run's own does."""
    unwrap: bool = False
    """Undo hard line breaks inside paragraphs (corpus.py says exactly which)."""


class TokenizerConfig(StrictModel):
    """A tokenizer to take, or the size of one to train on the corpus."""

    path: str | None = None
    """A folder or a hub id; without it, a byte-level BPE is trained."""
    vocabulary: Annotated[int, Field(ge=257, le=2**20)] = 40_000
    """Tokens of the byte-level BPE: 256 bytes, the end of text, and merges."""


class ShapeConfig(StrictModel):
    """The decoder's architecture and size. Defaults are GPT-1's."""

    style: Literal["gpt1", "gpt2", "llama"] = "gpt1"
    """Where the norms stand, which activation, how positions are told."""
    layers: Annotated[int, Field(gt=0, le=1024)] = 12
    """Blocks. Each is built before memory can run out, so that there is a limit."""
    width: Positive = 768
    heads: Positive = 12
    key_value_heads: Positive | None = None
    """Fewer than `heads` for grouped-query attention; llama only."""
    feed_forward: Positive | None = None
    """Inner width of a block; 4 · width without it, for llama 8/3 · width in steps of 64."""
    positions: Positive = 512
    """Longest text the decoder can read, in tokens."""
    tied: bool = True
    """One table for reading and predicting tokens; untied is for llama only."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ShapeConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        groups = self.key_value_heads or self.heads
        if self.heads % groups:
            raise ValueError(f"heads {self.heads} is not a multiple of key_value_heads {groups}")
        if self.style != "llama" and (groups != self.heads or not self.tied):
            raise ValueError("key_value_heads and tied: false are for style: llama")
        if self.style == "llama" and self.width // self.heads % 2:
            raise ValueError("llama's rotary positions need an even width / heads")
        return self


class PretrainConfig(StrictModel):
    """How to train. Defaults are those of GPT-1, section 4.1."""

    learning_rate: float = Field(2.5e-4, gt=0)
    """The peak: reached after the warm-up, then a cosine down to 0."""
    warmup_updates: Annotated[int, Field(ge=0)] = 2000
    batch_size: Positive = 64
    """Blocks in one update, over all processes."""
    epochs: Epochs = 100
    """Times to go over the corpus; a part of one is fine."""
    updates: Positive | None = None
    """A fixed number of updates instead of epochs."""
    context: Positive | None = None
    """Tokens of a block; without it, all positions of the decoder, or 2048 where it sets no limit.
    """
    mix_documents: bool = False
    """Cut blocks from all documents laid end to end; without it no block crosses a document."""
    dropout: Fraction = 0.1
    """Every dropout of the decoder."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay on everything but biases and gains."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global norm."""
    initial_spread: float = Field(0.02, gt=0)
    """Weights are drawn from N(0, this)."""
    seed: Seed = 42
    tokens_per_forward: Positive | None = resume_safe(None)
    """Most tokens in one forward pass; an update is split as needed, with the same gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in bfloat16 over fp32 weights; auto takes it where hardware is made for it."""
    deterministic: bool = False
    """On a GPU: the same bits every time, more slowly. A CPU always gives the same bits."""
    evaluations: Positive = 10
    """Validations over the whole run."""
    most_refused: Positive = resume_safe(10)
    """Updates in a row refused for numbers that are not finite after which the run stops."""
    checkpoint_minutes: float | None = resume_safe(10, gt=0)
    """Minutes between checkpoints, besides one per epoch; null here and below: only on a signal."""
    checkpoint_updates: Positive | None = resume_safe(None)
    """Updates between checkpoints, instead of or besides the minutes."""
    store: Literal["fp32", "bf16"] = resume_safe("fp32")
    """The type of the weights in the finished model folder."""


class Plan(StrictModel):
    """Everything a pre-training run is told. What is not said is GPT-1's."""

    about: str = ""
    """One line for humans."""
    corpus: CorpusConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    base: str | None = None
    """Continue training this decoder, with its own tokenizer and shape, instead of a new one."""
    trust_remote_code: bool = resume_safe(False)
    """Run Python code that comes with `base` or the tokenizer. Only for sources you trust."""
    shape: ShapeConfig = ShapeConfig()
    train: PretrainConfig = PretrainConfig()

    @model_validator(mode="after")
    def _context_fits(self) -> "Plan":
        context = self.train.context
        if self.base is None and context is not None and context > self.shape.positions:
            raise ValueError(
                f"train.context {context} is more than shape.positions {self.shape.positions}"
            )
        return self
