"""Bases with random weights and rows of text, generated once for all processes."""

import csv
import json
import lzma
import random
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.harness import Scale

SHAPES = {"small": {}, "tiny": {"n_layer": 4, "n_embd": 256, "n_head": 4}}
"""The default of transformers is gpt2-small; tiny shows the overhead of Python."""
END = "<|endoftext|>"
VOCABULARY = 50_257


def base(scale: Scale, shape: str = "small") -> Path:
    """A gpt2 of a shape with random weights, vocabulary 50,257 and dropout 0.1."""
    folder = scale.material / shape
    if not (folder / "tokenizer.json").exists():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=VOCABULARY, loss_type="ForCausalLM", **SHAPES[shape])
        GPT2LMHeadModel(config).save_pretrained(folder)
        _tokenizer(scale).save_pretrained(folder)
    return folder


def rte(scale: Scale, split: str) -> list[dict[str, str]]:
    """GLUE's RTE rows: sentence1, sentence2, label."""
    path = scale.data / "glue" / "RTE" / f"{split}.tsv"
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def pairs(scale: Scale, count: int) -> Path:
    """A TSV file that repeats the pairs of RTE, each with a number, up to `count` rows."""
    path = scale.material / f"pairs-{count}.tsv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = islice(cycle(rte(scale, "train")), count)
        with open(path, "w", encoding="utf-8", newline="") as stream:
            names = ("index", "sentence1", "sentence2", "label")
            writer = csv.writer(stream, "excel-tab", quoting=csv.QUOTE_NONE, quotechar=None)
            writer.writerow(names)
            for n, row in enumerate(rows):
                pair = (f"{n}. {row['sentence1']}", f"{n}. {row['sentence2']}")
                writer.writerow((n, *pair, row["label"]))
    return path


def questions(scale: Scale, count: int) -> list[dict[str, object]]:
    """RACE-like rows: a passage of 300 words, a question, four answers of 4 to 10 words."""
    words = [word for text in _novels(scale, "valid") for word in text.split()]
    generator = random.Random(0)

    def pick(low: int, high: int) -> str:
        size = generator.randint(low, high)
        start = generator.randrange(len(words) - size)
        return " ".join(words[start : start + size])

    return [
        {
            "article": pick(300, 300),
            "question": pick(8, 14) + "?",
            "options": [pick(4, 10) for _ in range(4)],
            "answer": generator.choice("ABCD"),
        }
        for _ in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _tokenizer(scale: Scale) -> PreTrainedTokenizerFast:
    """A byte-level BPE as in GPT-2, trained on novels and the sentences of RTE."""
    path = scale.material / "tokenizer.json"
    if not path.exists():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        names = ("sentence1", "sentence2")
        sentences = [row[name] for row in rte(scale, "train") for name in names]
        core.train_from_iterator([*_novels(scale, "train"), *sentences], trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        core.save(str(path))
    special_tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), model_max_length=1024, **special_tokens
    )


def _novels(scale: Scale, split: str) -> Iterator[str]:
    for path in sorted((scale.data / "lm" / "novels" / split).iterdir()):
        yield lzma.decompress(path.read_bytes()).decode()
