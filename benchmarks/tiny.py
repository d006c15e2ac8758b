"""Training of a tiny base, 4 layers of width 256, where the overheads of Python count."""

from functools import partial

from benchmarks import ours, peers
from benchmarks.contest import Claim, Contest, Found, Play, Scale, main


def _ours(scale: Scale, *, updates: int = 30, **options: object) -> Found:
    return ours.train_rte(scale, shape="tiny", updates=scale.choose(5, updates), **options)


def _peer(scale: Scale, *, updates: int = 30, **options: object) -> Found:
    return peers.train_rte(scale, shape="tiny", updates=scale.choose(5, updates), **options)


PLAYS: dict[str, Play] = {
    "Trainer, pad to 128, fp32": _peer,
    "gptft, fp32": _ours,
    "full logits, pad to 128, fp32": partial(_peer, updates=8, naive_lm=True),
    "gptft with LM loss, fp32": partial(_ours, updates=8, lm_coefficient=0.5),
}

CONTEST = Contest(
    "tiny",
    "RTE, 4 layers of 256",
    "example",
    PLAYS,
    (
        Claim("gptft, fp32", "Trainer, pad to 128, fp32", 3),
        Claim("gptft with LM loss, fp32", "full logits, pad to 128, fp32", 3),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
