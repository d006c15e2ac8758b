"""Training with the LM loss against that loss as one writes it down: all logits at once."""

from functools import partial

from benchmarks import ours, peers
from benchmarks.contest import Claim, Contest, Found, Play, Scale, main


def _ours(scale: Scale, **options: object) -> Found:
    return ours.train_rte(scale, updates=scale.choose(1, 2), lm_coefficient=0.5, **options)


def _peer(scale: Scale, **options: object) -> Found:
    return peers.train_rte(scale, updates=scale.choose(1, 2), naive_lm=True, **options)


PLAYS: dict[str, Play] = {
    "full logits, pad to 128, fp32": _peer,
    "gptft, fp32": _ours,
    "full logits, pad to 128, bf16": partial(_peer, bf16=True),
    "gptft, bf16": partial(_ours, precision="bf16"),
}

CONTEST = Contest(
    "language_loss",
    "RTE with task + 0.5 · LM, gpt2-small",
    "example",
    PLAYS,
    (
        Claim("gptft, fp32", "full logits, pad to 128, fp32", 4, 0.5),
        Claim("gptft, bf16", "full logits, pad to 128, bf16", 3.5, 0.5),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
