"""Plans of pre-training: the schema, whose defaults are GPT-1's, and plans as YAML files."""

from collections.abc import Collection, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from finetune.recipe.loading import check_code_trust, find_yaml_file, shipped_folder
from finetune.recipe.schema import (
    CommonTrainConfig,
    Epochs,
    Fraction,
    OptimizerName,
    Positive,
    PositiveFloat,
    StrictModel,
    resume_safe,
)
from finetune.recipe.validation import apply_overrides, validate
from finetune.recipe.yaml_documents import Document, parse_document, read_document
from task_formats import UsageError

Paths = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""One path or several."""


class CorpusConfig(StrictModel):
    """The text: files, or a data set of the Hub."""

    train: Annotated[Paths, Field(min_length=1)]
    """Files (.txt, .gz, .xz), folders of them, or globs; with `path`, splits."""
    evaluate: Paths = ()
    """The same for validation; empty: no validation."""
    path: str | None = None
    """A data set of the Hub, or a local copy; `train` and `evaluate` then name its splits."""
    name: str | None = None
    """Configuration of a data set of the Hub."""
    revision: str | None = None
    """Its branch, tag or commit."""
    column: str = "text"
    """Column with the text; each row is a document."""
    shards: str | None = None
    """Folder for tokenizer and token ids, shared by several runs; default: a folder of the run."""
    unwrap: bool = False
    """Join wrapped lines inside paragraphs, for text with hard line breaks."""


class TokenizerConfig(StrictModel):
    """An existing tokenizer, or the size of one learned from the corpus."""

    path: str | None = resume_safe(None)
    """Folder or Hub id of a tokenizer; default: learn a byte-level BPE from the corpus."""
    vocabulary: Annotated[int, Field(strict=True, ge=257, le=2**20)] = 40_000
    """Size of the learned vocabulary: 256 bytes, the end of text, and merges."""


class ShapeConfig(StrictModel):
    """Architecture and size of a new decoder. Defaults are GPT-1's (section 4.1)."""

    style: Literal["gpt1", "gpt2", "llama"] = "gpt1"
    """Position of the norms, activation and position encoding."""
    layers: Annotated[int, Field(strict=True, gt=0, le=1024)] = 12
    """Number of blocks."""
    width: Positive = 768
    heads: Positive = 12
    key_value_heads: Positive | None = None
    """Fewer than `heads` for grouped-query attention; llama only."""
    feed_forward: Positive | None = None
    """Inner width; default: 4 · width, for llama 8/3 · width in steps of 64."""
    positions: Positive = 512
    """Maximum sequence length of the decoder in tokens."""
    tied: bool = True
    """Tie input and output embeddings; false is for llama only."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ShapeConfig":
        if self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of heads {self.heads}")
        groups = self.key_value_heads or self.heads
        if self.heads % groups:
            raise UsageError(f"heads {self.heads} is not a multiple of key_value_heads {groups}")
        if self.style != "llama" and (groups != self.heads or not self.tied):
            raise UsageError("key_value_heads and tied: false are for style: llama")
        if self.style == "gpt1" and self.feed_forward not in (None, 4 * self.width):
            raise UsageError("style: gpt1 needs feed_forward 4 · width; leave it out")
        if self.style == "llama" and self.width // self.heads % 2:
            raise UsageError("llama's rotary positions need an even width / heads")
        return self


class PretrainConfig(CommonTrainConfig):
    """How to train. Defaults are those of GPT-1, section 4.1."""

    learning_rate: PositiveFloat = 2.5e-4
    """Peak learning rate, reached after the warm-up."""
    optimizer: OptimizerName = "adam"
    """adam is that of GPT-1's code; adamw is PyTorch's; adafactor and adamw_8bit need
    less memory."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: cosine decay to 0; or wsd, constant and then linear decay (warm-up,
    stable, decay)."""
    decay: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    """Fraction of all updates in which the learning rate of `schedule: wsd` decays."""
    warmup_updates: Annotated[int, Field(strict=True, ge=0)] = 2000
    batch_size: Positive = 64
    """Blocks in one update, over all processes."""
    epochs: Epochs = 100
    """Number of epochs; may be fractional."""
    updates: Positive | None = None
    """Number of updates, instead of epochs."""
    context: Annotated[int, Field(strict=True, ge=2)] | None = None
    """Tokens in a block; default: all positions of the decoder, or 2048 if it has no limit."""
    mix_documents: bool = False
    """Cut blocks from the concatenated documents; by default no block crosses a boundary."""
    dropout: Fraction = 0.1
    """Dropout probability of the decoder."""
    initial_spread: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    evaluations: Positive = 10
    """Validations over the whole run."""
    store: Literal["fp32", "bf16"] = resume_safe("fp32")
    """Number format of the weights of the finished model."""


def find_stable_end(updates: int, decay: float) -> int:
    """The last update before the decay of `schedule: wsd`."""
    return updates - max(1, round(decay * updates))


class Plan(StrictModel):
    """The configuration of a pre-training run. Defaults are GPT-1's."""

    about: str = ""
    """One line of description."""
    corpus: CorpusConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    base: str | None = None
    """Folder, GGUF file or Hub id of a base to train further, instead of a new decoder."""
    trust_remote_code: bool = resume_safe(False)
    """Run Python code that comes with `base` or the tokenizer. Only for sources you trust."""
    shape: ShapeConfig = ShapeConfig()
    train: PretrainConfig = PretrainConfig()

    @model_validator(mode="after")
    def _context_fits(self) -> "Plan":
        context = self.train.context
        if self.base is None and context is not None and context > self.shape.positions:
            positions = self.shape.positions
            raise UsageError(f"train.context {context} is more than shape.positions {positions}")
        return self


def load_plan(name_or_path: str | Path, overrides: Mapping[str, Any] = {}) -> Plan:
    """Loads a shipped plan or a YAML file.

    Args:
        name_or_path: Name of a shipped plan, or path of a YAML file. Paths in the file are relative
            to its folder.
        overrides: Values by dotted path, {"train.epochs": 5}. Their paths are relative to the
            current folder, and `train.epochs` replaces the updates of the plan.

    Raises:
        UsageError: There is no such plan, or it has an error; the message names the line.
    """
    path = find_yaml_file(name_or_path, shipped_plans(), "plan")
    if "train.epochs" in overrides:
        if overrides.get("train.updates") is not None:
            cure = "Give one of --epochs and --updates."
            raise UsageError("epochs and updates exclude each other", cure=cure)
        overrides = {**overrides, "train.updates": None}
    plan = _validate(apply_overrides(Plan, read_document(path), overrides))
    check_code_trust("trust_remote_code", plan.trust_remote_code, overrides, str(path))
    unused = [key for key in overrides if key.partition(".")[0] in ("shape", "tokenizer")]
    if plan.base is not None and unused:
        what = f"{unused[0]} has no effect: the base {plan.base!r} has a shape and tokenizer"
        raise UsageError(what, cure="Leave it out, or train a new decoder without --from.")
    return resolve_plan_paths(plan, path.resolve().parent, overrides)


def parse_plan(text: str, where: str = "") -> Plan:
    """Returns the plan in a YAML text; its paths stay as they are."""
    return _validate(parse_document(text, where))


def parse_run_plan(text: str, where: str, trust_remote_code: bool = False) -> Plan:
    """Parses the plan of a run; UsageError where it trusts remote code and the user does not."""
    plan = parse_plan(text, where)
    if trust_remote_code:
        return plan.model_copy(update={"trust_remote_code": True})
    check_code_trust("trust_remote_code", plan.trust_remote_code, (), where)
    return plan


def override_epochs(plan: Plan, epochs: float) -> Plan:
    """Returns the plan with other epochs; UsageError if its length is a number of updates."""
    if plan.train.updates is not None:
        cure = "gptft pretrain RUN/recipe.yaml -o RUN --resume --updates N makes it longer."
        raise UsageError("the length of this run is given in updates", cure=cure)
    document = Document(plan.model_dump())
    return _validate(apply_overrides(Plan, document, {"train.epochs": epochs}))


def _validate(document: Document) -> Plan:
    if "task" in document.data and "corpus" not in document.data:
        cure = "Use it with gptft train --task; a plan names a corpus."
        raise UsageError("this is a recipe, not a plan", where=document.where, cure=cure)
    return validate(Plan, document)


def is_plan(text: str) -> bool:
    """Whether a YAML text is a plan rather than a recipe."""
    return "corpus" in parse_document(text, "").data


def shipped_plans() -> dict[str, Path]:
    """Returns the plans that come with the package, by name."""
    return {path.stem: path for path in sorted((shipped_folder() / "pretrain").glob("*.yaml"))}


def resolve_plan_paths(plan: Plan, folder: Path, overrides: Collection[str]) -> Plan:
    """Returns the plan with absolute paths; overrides are relative to the current folder."""

    def resolve(key: str, path: str | None, maybe_hub: bool = False) -> str | None:
        if path is None or key in overrides:
            return path
        resolved = folder / expanduser(path)
        # `openai-community/gpt2` is a Hub id unless there is such a folder beside the plan.
        is_local = not maybe_hub or path.startswith((".", "~")) or resolved.exists()
        return str(resolved) if is_local else path

    corpus, tokenizer = plan.corpus, plan.tokenizer
    changes: dict[str, Any] = {
        "path": resolve("corpus.path", corpus.path, maybe_hub=True),
        "shards": resolve("corpus.shards", corpus.shards),
    }
    if corpus.path is None:
        for name in ("train", "evaluate"):
            changes[name] = tuple(resolve(f"corpus.{name}", p) for p in getattr(corpus, name))
    path = resolve("tokenizer.path", tokenizer.path, maybe_hub=True)
    updates = {
        "corpus": corpus.model_copy(update=changes),
        "tokenizer": tokenizer.model_copy(update={"path": path}),
        "base": resolve("base", plan.base, maybe_hub=True),
    }
    return plan.model_copy(update=updates)
