"""Pre-training from a plan to a base: losses, perplexity, resuming and errors."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.batching.sampler import EpochSampler
from finetune.checkpointing.run_folder import read_result
from finetune.models.pretrained import count_positions, load_decoder, load_language_model
from finetune.pretraining import Plan, pretrain
from finetune.pretraining.architectures import build_decoder
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.encoded_corpus import open_encoded_corpus
from finetune.pretraining.job import events
from finetune.recipe.schema import BaseConfig
from finetune.training.events import Evaluated, Notice, Started
from finetune.training.loop import Step
from task_formats import UsageError
from tests.support import jobs

SENTENCE = "The {} of the {} was {}, and nobody could say why it had come to that.\n"
WORDS = ("house", "river", "letter", "queen", "garden", "winter", "captain", "promise")
BOOK = "".join(
    SENTENCE.format(a, b, c) for a in WORDS for b in WORDS for c in ("old", "lost", "sold")
)


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    (folder / "train").mkdir()
    (folder / "train" / "long.txt").write_text(BOOK)
    (folder / "train" / "short.txt").write_text("It rained.\nIt stopped.")
    (folder / "valid.txt").write_text(BOOK[3000:4500] + "Ünd so wëiter.")
    return folder


def plan(books: Path, style: str = "gpt2", **train) -> Plan:
    settings = {
        "learning_rate": 1e-2,
        "warmup_updates": 3,
        "batch_size": 8,
        "updates": 12,
        "dropout": 0.1,
        "precision": "fp32",
        "evaluations": 3,
        "checkpoint_updates": 2,
        **train,
    }
    return Plan.model_validate(
        {
            "corpus": {
                "train": str(books / "train"),
                "evaluate": str(books / "valid.txt"),
                "shards": str(books / "shards"),
            },
            "tokenizer": {"vocabulary": 300},
            "shape": {"style": style, "layers": 2, "width": 32, "heads": 2, "positions": 48},
            "train": settings,
        }
    )


@pytest.fixture(scope="module")
def run(books, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(plan(books), folder)
    return folder


def test_the_loss_falls_and_is_logged(books, run):
    log = jobs.log(run)
    losses = [event["loss"] for event in log if event["event"] == "train"]
    scores = [event["scores"] for event in log if event["event"] == "evaluate"]
    assert len(losses) == 12
    assert abs(losses[0] - math.log(300)) < 0.5
    assert [score["loss"] for score in scores] == sorted((s["loss"] for s in scores), reverse=True)
    assert scores[-1]["loss"] < losses[0] - 1
    final = read_result(run)["scores"]["evaluate"]
    assert final == pytest.approx(scores[-1])
    assert read_result(run)["made_with"]["rows"]["train"] > 8


def test_the_learning_rate_warms_up_and_decays_along_a_cosine(run):
    rates = [event["learning_rate"] for event in jobs.log(run) if event["event"] == "train"]
    warmup = [1e-2 * n / 3 for n in (1, 2, 3)]
    decay = [1e-2 * (1 + math.cos(math.pi * n / 9)) / 2 for n in range(1, 10)]
    assert rates == pytest.approx([*warmup, *decay], abs=1e-12)


def test_perplexity_matches_transformers(books, run):
    """Each block read by transformers in float64; every token is a target once."""
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    text = (books / "valid.txt").read_text()
    ids = [0, *tokenizer(text)["input_ids"], 0]
    assert open_encoded_corpus(books / "shards" / "evaluate").tokens.tolist() == ids
    count = -(-(len(ids) - 1) // 47)
    bounds = [(len(ids) - 1) * k // count for k in range(count + 1)]
    nats = 0.0
    for a, b in pairwise(bounds):
        block = torch.tensor([ids[a : b + 1]])
        with torch.no_grad():
            nats += float(model.eval()(block, labels=block).loss) * (b - a)
    scores = read_result(run)["scores"]["evaluate"]
    assert scores["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / len(text.encode()), rel=1e-6
    )


def test_the_loss_of_an_update_matches_transformers_on_the_whole_batch(books, tmp_path):
    changed = plan(books, dropout=0.0, updates=1, warmup_updates=0)
    for event in events(changed, tmp_path / "run"):
        if isinstance(event, Step):
            loss = float(event.losses.lm)
            assert float(event.losses.total) == loss
            assert float(event.losses.task) == 0
    first = build_decoder(changed, 300, 0)
    first.set_attn_implementation("eager")
    blocks = TokenBlocks(open_encoded_corpus(books / "shards" / "train"), 48, "train")
    order = EpochSampler(len(blocks), 8, 1 / (len(blocks) // 8), 42, drop_incomplete=True)
    nats = targets = 0.0
    for index in order.indices(1).tolist():
        block = torch.tensor(blocks[index].prefix.astype(np.int64))[None]
        with torch.no_grad():
            nats += float(first.double().eval()(block, labels=block).loss) * (block.shape[1] - 1)
        targets += block.shape[1] - 1
    assert loss == pytest.approx(nats / targets, rel=1e-6)


def stop_after(update: int, plan: Plan, folder: Path) -> None:
    """Starts a run and ends it after an update, as an error would."""
    happening = events(plan, folder)
    next(event for event in happening if isinstance(event, Step) and event.number == update)
    happening.close()


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_resumes_bit_equal(books, run, tmp_path, stop):
    folder = tmp_path / "run"
    stop_after(stop, plan(books), folder)
    assert not (folder / "result.json").exists()
    pretrain(plan(books), folder, resume=True)
    assert _bytes(folder) == _bytes(run)
    assert jobs.log(folder) == jobs.log(run)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())}


@pytest.mark.parametrize("style", ["gpt1", "gpt2", "llama"])
def test_every_style_gives_a_base_for_fine_tuning(books, tmp_path, style):
    result = pretrain(plan(books, style, updates=2, store="bf16"), tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert not any(tensor.isnan().any() for tensor in tensors.values())
    base = load_decoder(BaseConfig(path=str(tmp_path / "run")))
    assert count_positions(base.decoder) == 48
    assert len(base.task_tokens.tokenizer) == 300 + 4
    # The result is that of the saved, rounded weights, not of those in memory.
    last = [event for event in jobs.log(tmp_path / "run") if event["event"] == "evaluate"][-1]
    assert result.scores["evaluate"]["loss"] == pytest.approx(last["scores"]["loss"], rel=1e-2)
    assert result.scores["evaluate"] != last["scores"]


def test_a_base_is_trained_further_with_its_own_tokenizer_and_shape(books, run, tmp_path):
    further = plan(books).model_copy(update={"base": str(run)})
    found = list(events(further, tmp_path / "further"))
    first = next(event for event in found if isinstance(event, Step))
    assert float(first.losses.lm) < math.log(300) - 1
    assert (
        found[-1].result.scores["evaluate"]["loss"] < read_result(run)["scores"]["evaluate"]["loss"]
    )
    _, tokenizer = load_language_model(BaseConfig(path=str(tmp_path / "further")))
    assert len(tokenizer) == 300


def test_short_documents_are_packed(books, tmp_path):
    lines = [{"text": f"{sentence}\n"} for sentence in BOOK.splitlines()[:40]]
    lines[7]["text"] = BOOK[:400]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = plan(books, updates=2).model_dump()
    changed["corpus"] = {"train": (str(path),), "evaluate": (str(path),)}
    found = list(events(Plan.model_validate(changed), tmp_path / "run"))
    started = next(event for event in found if isinstance(event, Started))
    assert started.layout == "packed"
    assert len(open_encoded_corpus(tmp_path / "run" / "corpus" / "train").starts) == 41
    assert sum(isinstance(event, Evaluated) for event in found) == 2


def test_notices_describe_the_corpus_and_a_short_warm_up(books, tmp_path):
    shown = list(events(plan(books, updates=2, warmup_updates=2000), tmp_path / "run"))
    texts = [event.text for event in shown if isinstance(event, Notice)]
    assert any("bytes per token" in text for text in texts)
    assert any("2 updates, which are fewer than 2000" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"train": "nowhere/*.txt"}}, "no text files under 'nowhere"),
        ({"base": "./nowhere"}, "no such folder"),
        ({"tokenizer": {"path": "./nowhere"}}, "no such folder"),
    ],
)
def test_errors_name_the_cause(books, tmp_path, changes, message):
    values = {**plan(books).model_dump(), **changes}
    with pytest.raises(UsageError, match=message):
        pretrain(Plan.model_validate(values), tmp_path / "run")


def test_a_run_cannot_be_resumed_with_another_plan(books, tmp_path):
    stop_after(3, plan(books), tmp_path / "run")
    with pytest.raises(UsageError, match=r"another train\.learning_rate: 0\.01, not 0\.02"):
        pretrain(plan(books, learning_rate=2e-2), tmp_path / "run", resume=True)
