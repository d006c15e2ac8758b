"""The tokens of the input transforms in every family's tokenizer, and their embeddings."""

import pytest
import torch

from finetune.models.pretrained import load_decoder
from finetune.models.task_tokens import DELIMITER, EXTRACT, START
from finetune.recipe.schema import BaseConfig
from tests.support.families import FAMILIES, SENTENCES, SPARE_ROWS, TIED, make_tokenizer
from tests.support.samples import load


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def test_new_tokens_are_new_and_the_pad_token_is_no_other_token(family, bases) -> None:
    task_tokens = load(bases(family)).task_tokens
    before = make_tokenizer(family)
    assert min(task_tokens.special_tokens) == len(before)
    assert len({*task_tokens.special_tokens, task_tokens.pad_id}) == 4
    tokenizer = task_tokens.tokenizer
    others = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert task_tokens.pad_id not in others
    if before.pad_token is not None:
        assert task_tokens.pad_id == before.pad_token_id
    assert "!" in before.get_vocab() or family == "openai-gpt"


def test_text_has_the_tokens_of_the_base_and_never_special_ones(family, bases) -> None:
    task_tokens = load(bases(family)).task_tokens
    special = [*task_tokens.tokenizer.all_special_tokens, START, DELIMITER, EXTRACT]
    texts = ["a horse", f"a {' '.join(special)} horse", *special, f"{EXTRACT}a{START}"]
    reserved = {*task_tokens.special_tokens, task_tokens.pad_id, task_tokens.tokenizer.eos_token_id}
    for ids in task_tokens.tokenize(texts):
        assert len(ids) > 0
        assert not reserved.intersection(ids)
    assert task_tokens.tokenize([]) == []
    assert task_tokens.tokenize(texts) == [task_tokens.tokenize([text])[0] for text in texts]
    before = make_tokenizer(family)
    expected = [before.encode(text, add_special_tokens=False) for text in SENTENCES]
    assert task_tokens.tokenize(SENTENCES) == expected


def test_new_rows_are_near_the_mean_or_for_gpt1_drawn_at_random(family, bases) -> None:
    """Near the mean, new tokens take little probability in the LM loss."""
    base = load(bases(family))
    old = len(make_tokenizer(family))
    tokens = [*base.task_tokens.special_tokens, base.task_tokens.pad_id]
    ids = [token for token in tokens if token >= old]
    layers = base.decoder.get_input_embeddings(), base.decoder.get_output_embeddings()
    tables = {layer.weight for layer in layers}
    assert len(tables) == (1 if family in TIED else 2)
    for table in tables:
        assert len(table) == max(old + SPARE_ROWS.get(family, 0), len(base.task_tokens.tokenizer))
        rows, mean, deviation = table[ids], table[:old].mean(0), table[:old].std(0)
        assert len(rows.unique(dim=0)) == len(ids)
        if family == "openai-gpt":
            assert rows.std().item() == pytest.approx(0.02, rel=0.3)
            assert rows.abs().max() < 0.1
        else:
            assert ((rows - mean).abs() < 0.6 * deviation).all()
            assert ((rows - mean) / deviation).std().item() == pytest.approx(0.1, rel=0.4)
    if family != "openai-gpt":
        states = torch.randn(64, table.shape[1]) + table[:old].mean(0)
        probabilities = (states @ table.t()).softmax(-1)
        assert probabilities[:, list(base.task_tokens.special_tokens)].sum(-1).mean() < 0.1


def test_new_rows_copy_the_tokens_that_a_base_uses_in_their_place(family, bases) -> None:
    base = load(bases(family), new_tokens="copy")
    tokenizer, tokens = base.task_tokens.tokenizer, base.task_tokens.special_tokens
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    newline = encoded[0] if encoded and encoded[0] != tokenizer.unk_token_id else None
    end = bos if eos is None else eos
    copied = {
        tokens.start: tokenizer.get_vocab().get("<|endoftext|>", eos if bos is None else bos),
        tokens.delimiter: newline,
        tokens.extract: end if newline is None else newline,
    }
    for layer in (base.decoder.get_input_embeddings(), base.decoder.get_output_embeddings()):
        for token, source in copied.items():
            if source is not None:
                same = torch.equal(layer.weight[token], layer.weight[source])
                assert same == (family != "openai-gpt")


def test_the_same_seed_gives_the_same_rows(bases) -> None:
    def rows(seed: int) -> torch.Tensor:
        config = BaseConfig(path=str(bases("gpt2")), new_tokens="mean")
        base = load_decoder(config, seed)
        return base.decoder.get_input_embeddings().weight

    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert torch.equal(rows(1)[:300], rows(2)[:300])
