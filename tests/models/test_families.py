"""Every causal family of transformers computes the numbers of transformers, or is refused."""

from pathlib import Path

import pytest
import torch

from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.distributed.setup import choose_batch_config, create_accelerator
from finetune.models.attention.interface import ATTENTION_NAME
from finetune.models.speedups.optimize import optimize_decoder
from finetune.recipe.schema import LoraConfig
from task_formats import UsageError
from tests.support import family_outcomes, samples, small_configs
from tests.support.families import make_tokenizer
from tests.support.family_outcomes import examine, read_table
from tests.support.samples import KINDS
from tests.support.small_configs import FAMILIES, draw

TELLING = (
    "bart",  # takes no position ids
    "bert",  # packs, but its logits are not a linear map of its states
    "deepseek_v3",  # values narrower than keys
    "diffllama",  # the last token alone is computed otherwise
    "gpt_oss",  # attention sinks
    "lfm2",  # convolutions beside attention
    "mamba",  # no attention
    "nemotron",  # does not pass arguments to its attention
    "phimoe",  # its window is in its mask only
    "xlnet",  # reads later tokens
)
"""Families that each stand for a trap."""


@pytest.mark.parametrize("family", TELLING)
def test_numbers_are_those_of_transformers_in_the_layouts_that_the_page_lists(family: str) -> None:
    assert examine(family) == read_table()[family]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(TELLING)))
def test_the_same_of_all_other_families(family: str) -> None:
    assert examine(family) == read_table()[family]


CANNOT_GROW = ("deepseek_v4", "marian", "moshi", "xlstm")
"""Families that transformers cannot give further tokens, or not save with them."""
LOADABLE = sorted(
    name
    for name, row in read_table().items()
    if row.layouts in ("all", "separate") and name not in CANNOT_GROW
)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", LOADABLE)
def test_a_base_of_any_family_gets_new_tokens_and_is_saved_and_loaded(family, tmp_path) -> None:
    draw(family).save_pretrained(tmp_path / "base")
    make_tokenizer("gpt2").save_pretrained(tmp_path / "base")
    kind, base = KINDS["multiple_choice"], samples.load(tmp_path / "base")
    model, many = samples.task_model(kind, base).eval(), samples.examples(kind, base)
    accelerator = create_accelerator("fp32", "cpu")
    config = choose_batch_config(base.decoder, accelerator, base.task_tokens.pad_id)
    assert config.layout == ("separate" if read_table()[family].layouts == "separate" else "packed")
    batch = collate(many, config.layout, config.pad_id)
    save_model(tmp_path / "model", model, base, kind.task, 40)
    loaded, _ = load_model(tmp_path / "model", kind.task, 40)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch).logits, model(batch).logits)


def test_the_page_lists_every_family() -> None:
    assert tuple(read_table()) == FAMILIES


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", ["lfm2", "gemma3_text"])
def test_the_check_leaves_nothing_behind(family: str, training: bool) -> None:
    decoder = draw(family).train(training)
    own_attention, block = decoder.config._attn_implementation, decoder.model.layers[-1]
    block_class = type(block)
    weights = {name: value.clone() for name, value in decoder.state_dict().items()}
    windows = [getattr(module, "sliding_window", None) for module in decoder.modules()]
    state = torch.get_rng_state()
    optimize_decoder(decoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training == training for module in decoder.modules())
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())
    assert [getattr(module, "sliding_window", None) for module in decoder.modules()] == windows
    assert getattr(decoder.config, "sliding_window", small_configs.WINDOW) == small_configs.WINDOW
    if family == "lfm2":
        assert type(block) is block_class
        assert decoder.config._attn_implementation == own_attention
    else:
        assert decoder.config._attn_implementation == ATTENTION_NAME
        assert small_configs.WINDOW in windows


def test_a_window_longer_than_the_texts_of_the_check_is_found_too() -> None:
    config = small_configs.build("phimoe")
    config.sliding_window = 90
    decoder = type(draw("phimoe"))(config)
    optimize_decoder(decoder)
    assert decoder.config._attn_implementation != ATTENTION_NAME


def test_a_family_that_reads_later_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no causal decoder") as caught:
        optimize_decoder(draw("xlnet"))
    assert caught.value.where == "base.path"


def test_weights_that_are_not_finite_are_refused() -> None:
    decoder = draw("llama")
    decoder.model.norm.weight.data[3] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        optimize_decoder(decoder)


def test_wrong_numbers_are_found(monkeypatch) -> None:
    """The comparison fails where a family with convolutions is packed all the same."""
    monkeypatch.setattr("finetune.models.speedups.optimize.TOLERANCE", 10.0)
    with pytest.raises(AssertionError):
        examine("lfm2")


def test_the_table_is_written_as_it_is_read() -> None:
    outcomes = read_table()
    assert family_outcomes.PAGE.read_text("utf-8").endswith(family_outcomes.make_table(outcomes))


@pytest.mark.parametrize(
    ("family", "targets"), [("lfm2", "all-linear"), ("mamba", ("in_proj", "x_proj"))]
)
def test_adapters_on_a_family_with_its_own_attention(family, targets, tmp_path: Path) -> None:
    draw(family).save_pretrained(tmp_path)
    make_tokenizer("gpt2").save_pretrained(tmp_path)
    lora = LoraConfig(rank=2, targets=targets)
    kind, base = KINDS["multiple_choice"], samples.load(tmp_path, lora=lora)
    model, many = samples.task_model(kind, base), samples.examples(kind, base)
    together = samples.run_as(model, many, "separate", base.task_tokens.pad_id)
    alone = [samples.run(model, [collate([example], "separate")]).logits for example in many]
    for row, expected in zip(together.logits, alone, strict=True):
        torch.testing.assert_close(row[: expected.shape[1]], expected[0], rtol=1e-4, atol=1e-4)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == together.gradients.keys()
