"""Further pre-training of bases of several families, and sources of text."""

import math
from pathlib import Path

import datasets
import pytest
import torch
import transformers

from finetune.checkpointing.run_folder import read_result
from finetune.pretraining import Plan, pretrain
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.encoded_corpus import open_encoded_corpus
from task_formats import UsageError
from tests.pretraining.test_pretraining import stop_after
from tests.support import families


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(" ".join(families.SENTENCES) * 3)
    return folder


def further_plan(base: Path, texts: Path, **train) -> Plan:
    settings = {"updates": 2, "batch_size": 2, "precision": "fp32", "warmup_updates": 1, **train}
    corpus = {"train": str(texts), "evaluate": str(texts / "a.txt"), "shards": str(texts / "home")}
    return Plan.model_validate({"base": str(base), "corpus": corpus, "train": settings})


def test_without_an_end_of_text_token_another_special_token_separates_documents(
    bases, texts, tmp_path
):
    base = bases("openai-gpt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (None, None)
    pretrain(further_plan(base, texts), tmp_path / "run")
    assert read_result(tmp_path / "run")["scores"]["evaluate"]["loss"] > 0
    corpus = open_encoded_corpus(texts / "home" / "train")
    # This family has only an unknown token.
    assert corpus.tokens[corpus.starts].tolist() == [tokenizer.unk_token_id] * 3
    # The result can be trained further, too.
    pretrain(further_plan(tmp_path / "run", texts, updates=1), tmp_path / "further")


def test_without_any_special_token_the_suggested_cure_works(bases, texts, tmp_path):
    base = tmp_path / "base"
    tokenizer = families.make_tokenizer("gpt2")
    transformers.AutoModelForCausalLM.from_pretrained(bases("gpt2")).save_pretrained(base)
    core = tokenizer.backend_tokenizer
    transformers.PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(base)
    with pytest.raises(UsageError, match="no special token") as caught:
        pretrain(further_plan(base, texts), tmp_path / "run")
    assert "tokenizer_config.json" in caught.value.cure
    marked = transformers.AutoTokenizer.from_pretrained(base, eos_token="<|endoftext|>")
    marked.save_pretrained(base)
    pretrain(further_plan(base, texts), tmp_path / "again")


def test_a_base_without_a_limit_of_positions_gets_blocks_of_2048_tokens(texts, tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "bloom"
    tokenizer = families.make_tokenizer("gpt2")
    shape = transformers.BloomConfig(
        vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(base)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(base)
    (texts / "c.txt").write_text(" ".join(families.SENTENCES) * 40)
    pretrain(further_plan(base, texts, updates=1), tmp_path / "run")
    # Two short documents are one block each; the long one has blocks of 2047 targets.
    *_, start, end = open_encoded_corpus(texts / "home" / "train").starts.tolist()
    rows = read_result(tmp_path / "run")["made_with"]["rows"]["train"]
    assert rows == 2 + -(-(end - start) // 2047) > 3


@pytest.fixture
def small(bases, texts) -> Plan:
    return further_plan(bases("gpt2"), texts, updates=4, context=24, checkpoint_updates=1)


def change(plan: Plan, **train) -> Plan:
    return plan.model_copy(update={"train": plan.train.model_copy(update=train)})


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_rows_of_a_local_data_set_are_documents(bases, texts, tmp_path, kind):
    """A folder of Parquet files as on the Hub, and a folder saved by `datasets`."""
    folder = tmp_path / "set"
    splits = {"train": families.SENTENCES * 3, "validation": families.SENTENCES[:2]}
    made = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    if kind == "saved":
        datasets.DatasetDict(made).save_to_disk(folder)
    else:
        for name, rows in made.items():
            rows.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    plan = further_plan(bases("gpt2"), texts).model_dump(exclude_unset=True)
    corpus = {"path": str(folder), "train": "train", "evaluate": "validation"}
    pretrain(Plan.model_validate({**plan, "corpus": corpus}), tmp_path / "run")
    corpus = open_encoded_corpus(tmp_path / "run" / "corpus" / "train")
    assert len(corpus.starts) == 3 * len(families.SENTENCES) + 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases("gpt2"))
    assert tokenizer.decode(corpus.tokens[1 : corpus.starts[1]]) == families.SENTENCES[0]


def test_mixed_documents_fill_all_blocks(small, texts, tmp_path):
    for n in range(6):
        (texts / f"short{n}.txt").write_text(families.SENTENCES[n])
    counts = []
    for name, plan in (("mixed", change(small, mix_documents=True)), ("apart", small)):
        pretrain(plan, tmp_path / name)
        counts.append(read_result(tmp_path / name)["made_with"]["rows"]["train"])
    corpus = open_encoded_corpus(texts / "home" / "train")
    assert counts[0] == -(-int(corpus.starts[-1]) // 23) < counts[1]
    blocks = TokenBlocks(corpus, 24, "train", mix_documents=True)
    assert any(corpus.tokens[0] in block.prefix[1:-1] for block in blocks)


def test_an_interrupted_bf16_run_resumes_bit_equal(small, tmp_path):
    narrow = change(small, precision="bf16")
    pretrain(narrow, tmp_path / "whole")
    assert math.isfinite(read_result(tmp_path / "whole")["scores"]["evaluate"]["loss"])
    stop_after(2, narrow, tmp_path / "stopped")
    pretrain(narrow, tmp_path / "stopped", resume=True)
    pretrain(small, tmp_path / "wide")
    whole, stopped, wide = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "stopped", "wide")
    )
    assert whole == stopped != wide
