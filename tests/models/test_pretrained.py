"""Every family from disk: new tokens, dropout, what stays as it was, saving and reloading."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.models.language_model import LanguageModel
from finetune.models.lora import merge_adapters
from finetune.models.pretrained import load_decoder
from finetune.recipe.schema import BaseConfig, LoraConfig
from task_formats import UsageError
from tests.support import samples
from tests.support.families import FAMILIES, SENTENCES, SPARE_ROWS, TIED, make_tokenizer
from tests.support.samples import KINDS


def load(folder, **rest):
    return load_decoder(BaseConfig(path=str(folder), **{"dropout": None, **rest}))


def plain(folder) -> transformers.PreTrainedModel:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


# -- tokens ----------------------------------------------------------------------------------------


def test_the_new_tokens_are_new_and_the_pad_token_is_nothing_else(family, bases) -> None:
    task_tokens = load(bases(family)).task_tokens
    before = make_tokenizer(family)
    assert min(task_tokens.special_tokens) == len(before)
    assert len({*task_tokens.special_tokens, task_tokens.pad_id}) == 4
    known = task_tokens.tokenizer
    assert task_tokens.pad_id not in (known.eos_token_id, known.bos_token_id, known.unk_token_id)
    if before.pad_token is not None:
        assert task_tokens.pad_id == before.pad_token_id
    assert "!" in before.get_vocab() or family == "openai-gpt"


def test_text_stays_text_whatever_it_spells(family, bases) -> None:
    task_tokens = load(bases(family)).task_tokens
    marks = [*task_tokens.tokenizer.all_special_tokens, "<|start|>", "<|delimiter|>", "<|extract|>"]
    texts = ["a horse", f"a {' '.join(marks)} horse", *marks, "<|extract|>a<|start|>"]
    reserved = {*task_tokens.special_tokens, task_tokens.pad_id, task_tokens.tokenizer.eos_token_id}
    for ids in task_tokens.tokenize(texts):
        assert len(ids) > 0
        assert not reserved.intersection(ids)
    assert task_tokens.tokenize([]) == []
    assert task_tokens.tokenize(texts) == [task_tokens.tokenize([text])[0] for text in texts]


def test_tokens_are_those_of_the_base_without_anything_added(family, bases) -> None:
    task_tokens, before = load(bases(family)).task_tokens, make_tokenizer(family)
    expected = [before.encode(text, add_special_tokens=False) for text in SENTENCES]
    assert task_tokens.tokenize(SENTENCES) == expected


# -- weights ---------------------------------------------------------------------------------------


def test_the_decoder_computes_what_it_computed_before(family, bases) -> None:
    base, before = load(bases(family)), plain(bases(family))
    old = len(make_tokenizer(family))
    tokens = torch.arange(24)[None] % old
    model = LanguageModel(base.decoder).eval()
    batch = collate([samples.Encoded("x/0", tokens[0].numpy(), ())], "separate")
    with torch.no_grad():
        weight, bias = model.backbone.output_layer()
        found = torch.nn.functional.linear(model.backbone.hidden_states(batch), weight, bias)
        expected = before(tokens).logits[0]
    torch.testing.assert_close(found[:, :old], expected[:, :old], rtol=1e-4, atol=1e-4)
    assert {weight.dtype for weight in base.decoder.parameters()} == {torch.float32}


def test_new_rows_start_where_they_do_no_harm(family, bases) -> None:
    """GPT-1's own base: N(0, 0.02). Others: near the mean, so that no logit towers (trap 5)."""
    base = load(bases(family))
    old = len(make_tokenizer(family))
    ids = [*base.task_tokens.special_tokens] + (
        [base.task_tokens.pad_id] if base.task_tokens.pad_id >= old else []
    )
    tables = {
        base.decoder.get_input_embeddings().weight,
        base.decoder.get_output_embeddings().weight,
    }
    assert len(tables) == (1 if family in TIED else 2)
    for table in tables:
        assert len(table) == max(old + SPARE_ROWS.get(family, 0), len(base.task_tokens.tokenizer))
        rows, mean, spread = table[ids], table[:old].mean(0), table[:old].std(0)
        assert len(rows.unique(dim=0)) == len(ids)
        if family == "openai-gpt":
            assert rows.std().item() == pytest.approx(0.02, rel=0.3)
            assert rows.abs().max() < 0.1
        else:
            assert ((rows - mean).abs() < 0.6 * spread).all()
            assert ((rows - mean) / spread).std().item() == pytest.approx(0.1, rel=0.4)
    if family != "openai-gpt":
        states = torch.randn(64, table.shape[1]) + table[:old].mean(0)
        chances = (states @ table.t()).softmax(-1)
        assert chances[:, list(base.task_tokens.special_tokens)].sum(-1).mean() < 0.1


def test_the_same_seed_gives_the_same_rows(bases) -> None:
    def rows(seed: int) -> torch.Tensor:
        return (
            load_decoder(BaseConfig(path=str(bases("gpt2"))), seed)
            .decoder.get_input_embeddings()
            .weight
        )

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert torch.equal(rows(1)[:300], rows(2)[:300])


def test_from_scratch_keeps_the_shape_and_the_words_and_nothing_else(family, bases) -> None:
    trained, fresh = load(bases(family)), load(bases(family), from_scratch=True)
    assert fresh.task_tokens.special_tokens == trained.task_tokens.special_tokens
    for name, weight in fresh.decoder.named_parameters():
        other = trained.decoder.get_parameter(name)
        assert weight.shape == other.shape
        assert not torch.equal(weight, other)
        if weight.dim() == 2 and not name.endswith("c_proj.weight"):  # GPT-2 scales these down.
            assert weight.std().item() == pytest.approx(0.02, rel=0.25), name


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropout_reaches_the_decoder(family, probability: float, bases) -> None:
    base = load(bases(family), dropout=probability)
    model = LanguageModel(base.decoder)
    batch = collate([samples.Encoded("x/0", list(range(20)), ())], "separate")
    with torch.no_grad():
        model.eval()
        quiet = model.backbone.hidden_states(batch)
        torch.testing.assert_close(model.backbone.hidden_states(batch), quiet)
        model.train()
        loud = model.backbone.hidden_states(batch)
    assert bool((loud - quiet).abs().max() > 1e-3) == (probability > 0)


def test_dropout_is_the_same_everywhere_or_left_as_it_was(bases) -> None:
    for asked, expected in ((0.25, {0.25}), (None, {0.1})):
        decoder = load(bases("gpt2"), dropout=asked).decoder
        found = {part.p for part in decoder.modules() if isinstance(part, torch.nn.Dropout)}
        assert found == expected


# -- saving and reloading --------------------------------------------------------------------------


def test_what_is_saved_comes_back_bit_by_bit(family, bases, tmp_path: Path) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    model = samples.task_model(kind, base, dropout=0.1)
    with torch.no_grad():  # As training would, move every weight.
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=1e-3)
    many = samples.examples(kind, base)
    save_model(tmp_path, model, base)
    again, other = load_model(tmp_path, kind.task)
    assert other.task_tokens.special_tokens == base.task_tokens.special_tokens
    assert other.task_tokens.pad_id == base.task_tokens.pad_id
    assert other.task_tokens.tokenize(SENTENCES) == base.task_tokens.tokenize(SENTENCES)
    assert not again.training
    model.eval()
    batch = collate(many, "separate", base.task_tokens.pad_id)
    with torch.no_grad():
        assert torch.equal(again(batch).logits, model(batch).logits)
        torch.testing.assert_close(again(batch, lm=True).lm_loss, model(batch, lm=True).lm_loss)
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pkl"))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "gptft" not in json.dumps(config)


def test_a_saved_model_is_a_plain_transformers_folder(family, bases, tmp_path: Path) -> None:
    kind, base = KINDS["classification"], samples.load(bases(family))
    model = samples.task_model(kind, base).eval()
    save_model(tmp_path, model, base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(["<|start|>", "<|delimiter|>", "<|extract|>"])
    assert tuple(ids) == base.task_tokens.special_tokens
    example = samples.examples(kind, base, count=1)[0]
    (view,) = samples.views(example)
    with torch.no_grad():
        states = plain(tmp_path).base_model(torch.tensor([view])).last_hidden_state[0]
        expected = states[-1] @ model.head.weight.t() + model.head.bias
        found = model(collate([example], "separate", base.task_tokens.pad_id)).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# -- adapters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_adapters_train_little_and_come_back_with_head_and_new_rows(
    family: str, bases, tmp_path: Path
) -> None:
    kind = KINDS["entailment"]
    base = load(bases(family), dropout=0.0, lora=LoraConfig(rank=2))
    model = samples.task_model(kind, base)
    many = samples.examples(kind, base)
    batch = collate(many, "packed", base.task_tokens.pad_id)
    table = model.backbone.output_layer()[0].shape
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.shape != table for weight in trained)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    before = [weight.detach().clone() for weight in trained]
    for _ in range(2):  # The first step moves B from 0, the second then A.
        samples.run(model, [batch])
        optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(trained, before, strict=True))
    model.eval()
    with torch.no_grad():
        expected = model(batch, lm=True)
    save_model(tmp_path, model, base)
    assert not (tmp_path / "adapter_config.json").exists()
    again, _ = load_model(tmp_path, kind.task)
    with torch.no_grad():
        found = again(batch, lm=True)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.lm_loss, expected.lm_loss, rtol=1e-5, atol=1e-5)
    assert merge_adapters(again.backbone.decoder) is again.backbone.decoder


def test_adapters_need_layers_of_the_names_they_are_given(bases) -> None:
    with pytest.raises(UsageError, match="does not fit this base") as caught:
        load(bases("gpt2"), lora=LoraConfig(targets=("q_proj",)))
    assert "targets" in caught.value.cure
