"""The byte-level BPE is lossless and reproducible."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.models.task_tokens import tokenize
from finetune.pretraining.tokenizer import END_OF_TEXT, learn_tokenizer

TEXTS = [
    f"The {thing} of the {owner} is {n} years old, and nobody knows why it wasn't sold.\n"
    for n, thing in enumerate(["house", "horse", "garden", "letter", "river"] * 4)
    for owner in ["farmer", "queen", "children", "old sailor"]
]
LEARN = """
import json, sys
from finetune.pretraining.tokenizer import learn_tokenizer
sys.stdout.write(learn_tokenizer(json.load(sys.stdin), 320, 64).backend_tokenizer.to_str())
"""


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXTS, 320, 64)


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example(f"a{END_OF_TEXT}b")
def test_encoding_is_lossless(tokenizer, text):
    ids = tokenize(tokenizer, [text])[0]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids


def test_it_has_an_end_of_text_token_no_padding_token_and_merges(tokenizer):
    assert len(tokenizer) == 320
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT
    assert tokenizer.pad_token is None
    assert tokenizer.eos_token_id == 0
    assert len(tokenize(tokenizer, [TEXTS[0]])[0]) < len(TEXTS[0]) / 2
    assert tokenizer.model_max_length == 64


def test_a_short_text_gives_fewer_tokens():
    assert len(learn_tokenizer(["ab"], 320, 64)) == 257


def test_another_process_with_another_hash_seed_and_threads_learns_the_same(tokenizer, root):
    changes = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.run(
        [sys.executable, "-c", LEARN],
        cwd=root,
        env=os.environ | changes,
        input=json.dumps(TEXTS).encode(),
        capture_output=True,
        check=True,
    )
    assert process.stdout.decode() == tokenizer.backend_tokenizer.to_str()
