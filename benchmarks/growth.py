"""Cost that grows linearly: seconds per example at 1, 4 and 16 times the rows."""

from functools import partial

from benchmarks import ours
from benchmarks.contest import Claim, Contest, Found, Play, Scale, main


def _train(scale: Scale, *, times: int) -> Found:
    updates = times * scale.choose(1, 24)
    return ours.train_rte(scale, shape="tiny", updates=updates, repeated=True)


PLAYS: dict[str, Play] = {
    f"{times} × the rows": partial(_train, times=times) for times in (1, 4, 16)
}

CONTEST = Contest(
    "growth",
    "RTE, 4 layers of 256, fp32",
    "example",
    PLAYS,
    (
        Claim("4 × the rows", "1 × the rows", 0.9),
        Claim("16 × the rows", "1 × the rows", 0.9),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
