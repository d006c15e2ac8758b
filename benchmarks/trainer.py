"""Training against transformers' Trainer, used as its run_glue example uses it."""

from functools import partial

from benchmarks import ours, peers
from benchmarks.contest import Claim, Contest, Found, Play, Scale, main


def _ours(scale: Scale, **options: object) -> Found:
    return ours.train_rte(scale, updates=scale.choose(1, 3), **options)


def _peer(scale: Scale, **options: object) -> Found:
    return peers.train_rte(scale, updates=scale.choose(1, 3), **options)


PLAYS: dict[str, Play] = {
    "Trainer, pad to 128, fp32": _peer,
    "Trainer, dynamic padding, fp32": partial(_peer, padded=False),
    "gptft, fp32": _ours,
    "gptft, fp32, allocator left alone": partial(_ours, allocator=False),
    "Trainer, pad to 128, bf16": partial(_peer, bf16=True),
    "gptft, bf16": partial(_ours, precision="bf16"),
}

CONTEST = Contest(
    "trainer",
    "RTE, gpt2-small",
    "example",
    PLAYS,
    (
        Claim("gptft, fp32", "Trainer, pad to 128, fp32", 3.3, 0.5),
        Claim("gptft, fp32", "Trainer, dynamic padding, fp32", 3.3, 0.5),
        Claim("gptft, bf16", "Trainer, pad to 128, bf16", 2.5, 0.5),
        Claim("gptft, bf16", "Trainer, pad to 128, fp32", 7, 0.5),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
