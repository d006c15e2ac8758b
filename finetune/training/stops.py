"""How the processes of a job stop together, and how they do where there is nothing to save."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from finetune.distributed.collectives import all_reduce_max
from finetune.distributed.signals import StopRequest, Wish
from finetune.training.events import Interrupted


def agree(accelerator: Accelerator, wish: Wish | None, code: int) -> tuple[Wish | None, int]:
    """The strongest wish of any process and the highest exit code.

    So all do the same after the same update, and all say that they were stopped.
    """
    if accelerator.num_processes == 1:
        return wish, code
    ranks: tuple[Wish | Literal["save", "stop"] | None, ...] = (None, "save", "stop")
    strongest, highest = all_reduce_max([ranks.index(wish), code], accelerator)
    return ranks[strongest], highest


@contextmanager
def stopping_at_once(request: StopRequest, folder: Path) -> Iterator[None]:
    """Interrupted, as soon as a signal asks for the end while its block runs: nothing is saved."""
    try:
        with request.at_once():
            yield
    except BaseException:
        # Whatever the error is: the peers of a process that has stopped have others.
        if request.exit_code:
            raise Interrupted(folder, None, request.exit_code) from None
        raise
