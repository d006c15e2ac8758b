"""Multiple choice with a shared context: passages of 300 words, 4 answers, with LM loss.

Compared with gptft in the layout `separate`, where every answer repeats the context, and with a
plain loop over GPT2DoubleHeadsModel of transformers, which computes the logits of every token.
"""

from collections.abc import Iterator
from functools import partial

import torch
from transformers import AutoTokenizer, GPT2DoubleHeadsModel

from benchmarks import gptft, inputs
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main

BATCH, TOGETHER = 4, 1
"""Questions per update, and per forward pass of the peer, which needs more memory."""


def _gptft(scale: Scale, **options: object) -> Measurement:
    return gptft.train_choices(scale, updates=scale.choose(1, 2), batch=BATCH, **options)


def _loop(scale: Scale) -> Measurement:
    model = GPT2DoubleHeadsModel.from_pretrained(inputs.base(scale)).train()
    rows = inputs.questions(scale, BATCH * (scale.choose(1, 2) + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6.25e-5)

    def steps() -> Iterator[int]:
        for first in range(0, len(rows), BATCH):
            optimizer.zero_grad()
            for start in range(first, first + BATCH, TOGETHER):
                questions = rows[start : start + TOGETHER]
                outputs = model(**_encode(scale, questions), return_dict=True)
                loss = outputs.mc_loss + 0.5 * outputs.loss
                (loss * TOGETHER / BATCH).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield BATCH

    return clock(steps())


def _encode(scale: Scale, rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """(B, 4, T) ids padded on the right, masks, labels and the positions that the head reads."""
    tokenizer = AutoTokenizer.from_pretrained(inputs.base(scale))
    tokenizer.pad_token = tokenizer.eos_token
    texts = [
        f"{row['article']}\n{row['question']} {option}" for row in rows for option in row["options"]
    ]
    padded = tokenizer(texts, truncation=True, max_length=512, padding=True, return_tensors="pt")
    shape = (len(rows), 4, -1)
    mask = padded["attention_mask"]
    return {
        "input_ids": padded["input_ids"].view(shape),
        "attention_mask": mask.view(shape),
        "mc_token_ids": (mask.sum(1) - 1).view(len(rows), 4),
        "labels": padded["input_ids"].masked_fill(mask == 0, -100).view(shape),
        "mc_labels": torch.tensor(["ABCD".index(str(row["answer"])) for row in rows]),
    }


CONTESTANTS: dict[str, Contestant] = {
    "transformers loop, full logits": _loop,
    "gptft, layout separate": partial(_gptft, layout="separate"),
    "gptft": _gptft,
}

BENCHMARK = Benchmark(
    "choices",
    "RACE-like with task + 0.5 · LM, gpt2-small, fp32",
    "example",
    CONTESTANTS,
    (
        Claim("gptft", "gptft, layout separate", 2.5),
        Claim("gptft", "transformers loop, full logits", 6),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
