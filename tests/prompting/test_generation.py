"""Free text: transformers' own generate, token for token, alone or in a batch."""

import pytest
import torch
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
    """One text through transformers alone."""
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
    ("decoding", "settings"),
    [
        (DecodingOptions(12), {"do_sample": False}),
        (DecodingOptions(12, beams=4), {"do_sample": False, "num_beams": 4, "length_penalty": 0.6}),
        (
            DecodingOptions(12, beams=3, length_penalty=2.0),
            {"do_sample": False, "num_beams": 3, "length_penalty": 2.0},
        ),
    ],
)
def test_greedy_and_beams_are_transformers_own(pair, decoding, settings):
    alone = [expected(pair, text, **settings) for text in TEXTS]
    assert [pair[0].write([text], decoding)[0] for text in TEXTS] == alone
    assert pair[0].write(TEXTS, decoding) == alone


def test_drawing_is_transformers_own_and_seeded(pair):
    decoding = DecodingOptions(12, temperature=0.8, top_k=20, top_p=0.9, seed=3)
    torch.manual_seed(3)
    alone = expected(pair, TEXTS[0], do_sample=True, temperature=0.8, top_k=20, top_p=0.9)
    assert pair[0].write(TEXTS[:1], decoding) == [alone]
    assert pair[0].write(TEXTS, decoding) == pair[0].write(TEXTS, decoding)
    drawn = {
        pair[0].write(TEXTS[:1], DecodingOptions(12, temperature=2.0, seed=n))[0] for n in range(4)
    }
    assert len(drawn) > 1


def test_what_is_streamed_is_what_is_written(pair):
    for decoding in (
        DecodingOptions(12),
        DecodingOptions(12, temperature=0.7, seed=1),
        DecodingOptions(12, beams=2),
    ):
        pieces = list(pair[0].stream(TEXTS[1], decoding))
        assert "".join(pieces) == pair[0].write([TEXTS[1]], decoding)[0]


def test_a_text_without_tokens_begins_with_the_end_of_text(bases):
    writer = TextGenerator(BaseConfig(path=str(bases("gpt2"))), "cpu")
    assert (
        writer.write(["", "He"], DecodingOptions(5))[0] == writer.write([""], DecodingOptions(5))[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens cannot be 0"),
        ({"temperature": float("nan")}, "--temperature cannot be nan"),
        ({"temperature": 1e-9}, "--temperature cannot be 1e-09"),
        ({"top_p": 0.0}, "--top-p cannot be 0.0"),
        ({"beams": 0}, "--beams cannot be 0"),
        ({"beams": 2, "length_penalty": float("inf")}, "--length-penalty cannot be inf"),
        ({"seed": -1}, "--seed cannot be -1"),
        ({"seed": 2**64}, f"--seed cannot be {2**64}"),
        ({"beams": 2, "temperature": 1.0}, "beam search draws nothing"),
        ({"top_k": 5}, "draws nothing, so --top-k has no effect"),
        ({"top_p": 0.9}, "draws nothing, so --top-p has no effect"),
        ({"length_penalty": 1.0}, "no beam search, so --length-penalty has no effect"),
    ],
)
def test_what_cannot_be_or_would_do_nothing_is_refused(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        DecodingOptions(**settings)
    assert caught.value.cure


def test_the_coldest_draw_is_the_likeliest_token(bases):
    writer = TextGenerator(BaseConfig(path=str(bases("gpt2"))), "cpu")
    assert writer.write(["He"], DecodingOptions(5, temperature=0.001)) == writer.write(
        ["He"], DecodingOptions(5)
    )


def test_more_than_the_positions_are_refused(bases):
    writer = TextGenerator(BaseConfig(path=str(bases("gpt2"))), "cpu")
    with pytest.raises(UsageError, match="96 positions"):
        writer.write(["He"], DecodingOptions(96))
