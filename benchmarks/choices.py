"""Multiple choice with its context read once: passages of 300 words, 4 answers, with LM loss.

Against rows of their own for every answer, in our code, and against a plain loop over
transformers' GPT2DoubleHeadsModel, which makes the logits of every token of every answer.
"""

from collections.abc import Iterator
from functools import partial

import torch
from transformers import AutoTokenizer, GPT2DoubleHeadsModel

from benchmarks import material, ours
from benchmarks.contest import Claim, Contest, Found, Play, Scale, clock, main

BATCH, TOGETHER = 4, 1
"""Questions of an update, and of one of the peer's forward passes: more need too much memory."""


def _ours(scale: Scale, **options: object) -> Found:
    return ours.train_choices(scale, updates=scale.choose(1, 2), batch=BATCH, **options)


def _loop(scale: Scale) -> Found:
    model = GPT2DoubleHeadsModel.from_pretrained(material.base(scale)).train()
    rows = material.questions(scale, BATCH * (scale.choose(1, 2) + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6.25e-5)

    def steps() -> Iterator[int]:
        for at in range(0, len(rows), BATCH):
            optimizer.zero_grad()
            for start in range(at, at + BATCH, TOGETHER):
                part = rows[start : start + TOGETHER]
                found = model(**_encode(scale, part), return_dict=True)
                loss = found.mc_loss + 0.5 * found.loss
                (loss * TOGETHER / BATCH).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield BATCH

    return clock(steps())


def _encode(scale: Scale, rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """(B, 4, T) ids, padded on the right to the longest of the batch, and what goes with them."""
    tokenizer = AutoTokenizer.from_pretrained(material.base(scale))
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


PLAYS: dict[str, Play] = {
    "transformers loop, full logits": _loop,
    "gptft, layout separate": partial(_ours, layout="separate"),
    "gptft": _ours,
}

CONTEST = Contest(
    "choices",
    "RACE-like with task + 0.5 · LM, gpt2-small, fp32",
    "example",
    PLAYS,
    (
        Claim("gptft", "gptft, layout separate", 2.5),
        Claim("gptft", "transformers loop, full logits", 6),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
