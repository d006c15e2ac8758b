"""Preparing 400,000 pairs, MNLI's size: rows a second, memory, and how soon a second run starts.

The file repeats RTE's pairs, each with the number of its row so that no two are equal. The peer is
what run_glue does: `datasets` reads the file and maps the tokenizer over it, padding to 128.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial

import datasets

from benchmarks import material, peers
from benchmarks.contest import Claim, Contest, Found, Play, Scale, clock, main
from benchmarks.ours import WIDTH
from finetune.data.splits import encode_split
from finetune.models.pretrained import build_encoder, load_decoder
from finetune.models.speedups.allocator import keep_freed_memory
from finetune.recipe.loading import load_recipe

FEW, MANY = 20_000, 400_000


def _ours(scale: Scale, *, share: int = 1, times: int = 1) -> Found:
    keep_freed_memory()
    file = material.pairs(scale, scale.choose(FEW, MANY) // share)
    changes = {"base.path": str(material.base(scale, "tiny")), "data.train": str(file)}
    recipe = load_recipe("rte", {**changes, "data.path": None, "data.name": None})
    task, base = recipe.task.build(), load_decoder(recipe.base)
    encoder, tokenizer = build_encoder(recipe, task, base), base.task_tokens.fingerprint

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GPTFT_CACHE"] = folder
            for _ in range(times):
                split = encode_split(recipe, task, encoder, str(file), tokenizer_hash=tokenizer)
                yield len(split.examples)

    return clock(steps(), warm=times - 1)


def _peer(scale: Scale) -> Found:
    file = material.pairs(scale, scale.choose(FEW, MANY))
    tokenizer = peers.tokenizer(scale, "tiny")

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            rows = datasets.load_dataset(
                "csv", data_files=str(file), delimiter="\t", cache_dir=folder, split="train"
            )
            yield len(
                rows.map(
                    lambda part: tokenizer(
                        part["sentence1"], part["sentence2"],
                        padding="max_length", truncation=True, max_length=WIDTH,
                    ),
                    batched=True,
                )
            )  # fmt: skip

    datasets.disable_progress_bars()
    return clock(steps(), warm=0)


PLAYS: dict[str, Play] = {
    "datasets.map, pad to 128": _peer,
    "gptft": _ours,
    "gptft, a quarter of the rows": partial(_ours, share=4),
    "gptft, second run": partial(_ours, times=2),
}

CONTEST = Contest(
    "preparation",
    "400,000 pairs of RTE's length",
    "row",
    PLAYS,
    (
        Claim("gptft", "datasets.map, pad to 128", 1),
        Claim("gptft", "gptft, a quarter of the rows", 0.9, 1.1),
        Claim("gptft, second run", "gptft", 10),
    ),
    rounds=1,
)

if __name__ == "__main__":
    main(CONTEST)
