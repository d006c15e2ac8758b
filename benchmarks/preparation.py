"""Preparing 400,000 pairs, the size of MNLI: rows per second, memory, and a second run.

The file repeats the pairs of RTE, each with the number of its row, so that no two are equal. The
peer is run_glue: `datasets` reads the file and maps the tokenizer over it, padding to 128.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial

import datasets

from benchmarks import inputs, peers
from benchmarks.gptft import WIDTH
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main
from finetune.data.splits import encode_split
from finetune.models.pretrained import build_encoder, load_decoder
from finetune.recipe.loading import load_recipe

FEW, MANY = 20_000, 400_000


def _gptft(scale: Scale, *, share: int = 1, times: int = 1) -> Measurement:
    file = inputs.pairs(scale, scale.choose(FEW, MANY) // share)
    changes = {"base.path": str(inputs.base(scale, "tiny")), "data.train": str(file)}
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


def _peer(scale: Scale) -> Measurement:
    file = inputs.pairs(scale, scale.choose(FEW, MANY))
    tokenizer = peers.tokenizer(scale, "tiny")

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            rows = datasets.load_dataset(
                "csv", data_files=str(file), delimiter="\t", cache_dir=folder, split="train"
            )
            yield len(
                rows.map(
                    lambda rows: tokenizer(
                        rows["sentence1"], rows["sentence2"],
                        padding="max_length", truncation=True, max_length=WIDTH,
                    ),
                    batched=True,
                )
            )  # fmt: skip

    datasets.disable_progress_bars()
    return clock(steps(), warm=0)


CONTESTANTS: dict[str, Contestant] = {
    "datasets.map, pad to 128": _peer,
    "gptft": _gptft,
    "gptft, a quarter of the rows": partial(_gptft, share=4),
    "gptft, second run": partial(_gptft, times=2),
}

BENCHMARK = Benchmark(
    "preparation",
    "400,000 pairs of RTE's length",
    "row",
    CONTESTANTS,
    (
        Claim("gptft", "datasets.map, pad to 128", 1.5),
        Claim("gptft", "gptft, a quarter of the rows", 0.9, 1.1),
        Claim("gptft, second run", "gptft", 10),
    ),
    rounds=1,
)

if __name__ == "__main__":
    main(BENCHMARK)
