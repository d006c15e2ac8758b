"""Generated text equals that of transformers' generate, alone or in a batch."""

import shutil

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.prompting.generation import DecodingOptions, TextGenerator
from finetune.recipe.schema import BaseConfig
from task_formats import UsageError

TEXTS = ["It rained all", "Who wrote the letter that she found between the", "He"]


@pytest.fixture(scope="module", params=["gpt2", "llama", "openai-gpt"])
def pair(request, bases):
    folder = bases(request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return (
        TextGenerator(BaseConfig(path=str(folder)), "cpu"),
        model,
        AutoTokenizer.from_pretrained(folder),
    )


def expected(pair, text: str, **settings) -> str:
    """One text with transformers."""
    _, model, tokenizer = pair
    tokens = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=12,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
            **settings,
        )
    return tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "settings", [{}, {"beams": 4}, {"beams": 3, "length_penalty": 2.0}], ids=str
)
def test_greedy_decoding_and_beam_search_match_transformers(pair, settings):
    decoding = DecodingOptions(12, **settings)
    theirs = {"num_beams": decoding.beams, "length_penalty": decoding.length_penalty}
    alone = [expected(pair, text, do_sample=False, **theirs) for text in TEXTS]
    assert [pair[0].generate([text], decoding)[0] for text in TEXTS] == alone
    assert pair[0].generate(TEXTS, decoding) == alone


def test_sampling_matches_transformers_and_follows_the_seed(pair):
    decoding = DecodingOptions(12, temperature=0.8, top_k=20, top_p=0.9, seed=3)
    torch.manual_seed(3)
    alone = expected(pair, TEXTS[0], do_sample=True, temperature=0.8, top_k=20, top_p=0.9)
    assert pair[0].generate(TEXTS[:1], decoding) == [alone]
    assert pair[0].generate(TEXTS, decoding) == pair[0].generate(TEXTS, decoding)
    drawn = {
        pair[0].generate(TEXTS[:1], DecodingOptions(12, temperature=2.0, seed=n))[0]
        for n in range(4)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "seed": 1}, {"beams": 2}], ids=str)
def test_streamed_pieces_join_to_the_generated_text(pair, settings):
    decoding = DecodingOptions(12, **settings)
    pieces = list(pair[0].stream(TEXTS[1], decoding))
    assert "".join(pieces) == pair[0].generate([TEXTS[1]], decoding)[0]


def test_a_token_that_a_tokenizer_puts_after_texts_is_left_out(bases, tmp_path):
    before = TextGenerator(BaseConfig(path=str(bases("llama"))), "cpu")
    shutil.copytree(bases("llama"), tmp_path / "both")
    tokenizer = AutoTokenizer.from_pretrained(bases("llama"))
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=ids
    )
    tokenizer.save_pretrained(tmp_path / "both")
    assert AutoTokenizer.from_pretrained(tmp_path / "both")("a")["input_ids"][-1] == ids[1][1]
    after = TextGenerator(BaseConfig(path=str(tmp_path / "both")), "cpu")
    assert after.generate(TEXTS, DecodingOptions(12)) == before.generate(TEXTS, DecodingOptions(12))


@pytest.fixture(scope="module")
def generator(bases):
    return TextGenerator(BaseConfig(path=str(bases("gpt2"))), "cpu")


def test_an_empty_text_in_a_batch_continues_as_alone(generator):
    together, alone = (generator.generate(t, DecodingOptions(5)) for t in (["", "He"], [""]))
    assert together[0] == alone[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens cannot be 0"),
        ({"temperature": float("nan")}, "--temperature cannot be nan"),
        ({"temperature": 1e-9}, "--temperature cannot be 1e-09"),
        ({"top_p": 0.0}, "--top-p cannot be 0.0"),
        ({"beams": 2, "length_penalty": float("inf")}, "--length-penalty cannot be inf"),
        ({"seed": 2**64}, f"--seed cannot be {2**64}"),
        ({"beams": 2, "temperature": 1.0}, "beam search and sampling exclude each other"),
        ({"top_k": 5}, "--top-k has no effect without --temperature"),
        ({"length_penalty": 1.0}, "--length-penalty has no effect without --beams"),
    ],
)
def test_invalid_options_and_options_without_effect_are_refused(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        DecodingOptions(**settings)
    assert caught.value.cure


def test_sampling_at_a_very_low_temperature_is_greedy(generator):
    cold, greedy = DecodingOptions(5, temperature=0.001), DecodingOptions(5)
    assert generator.generate(["He"], cold) == generator.generate(["He"], greedy)


def test_texts_longer_than_the_context_are_refused(generator):
    with pytest.raises(UsageError, match="96 positions"):
        generator.generate(["He"], DecodingOptions(96))
