"""Signals as wishes that a loop looks at between two steps.

| signal | wish | exit code after it |
|---|---|---|
| SIGUSR1 | finish the forward pass, save a state, go on | |
| SIGTERM | the same, but stop | 143 |
| SIGINT (Ctrl-C) | the same | 130 |
| SIGINT again | stop now (KeyboardInterrupt) | 130 |

Of several processes all hear what one was told; a state is the first one's wish.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol

Wish = Literal["save", "stop"]

STOPS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask for the end. The exit code after one is 128 + its number."""

GRACE = 0.5
"""Seconds in which a second SIGINT is the first one's echo: a launcher passes on the Ctrl-C that
the terminal has sent to each of its processes already."""


class Peers(Protocol):
    """Where several processes make one job: what any of them was told."""

    first: bool
    """Whether this is the process that writes states for all."""

    def passing_on(self) -> AbstractContextManager[None]:
        """Tells the others what this one is told, while its block runs."""

    def waking(self, told: Callable[[], object]) -> AbstractContextManager[None]:
        """Signals this process where another was told to stop, while its block runs."""

    def hear(self) -> tuple[int, signal.Signals | None]:
        """The wishes to save so far, for the first process to see, and how to stop."""


@contextmanager
def save_requests_ignored() -> Iterator[None]:
    """Lets SIGUSR1 pass wherever no StopRequest hears it: there is nothing to save as yet.

    Left alone it would kill the process, and processes started meanwhile while they start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        _set_handler(signal.SIGUSR1, old)


def _set_handler(number: int, old: Any) -> None:
    # None: a handler that was not set from Python, and that Python cannot set again.
    signal.signal(number, signal.SIG_DFL if old is None else old)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end where there is nothing to finish."""


class StopRequest:
    """While its block runs, signals become wishes: look at `wanted`, or `take` them.

        with StopRequest() as request:
            for step in steps:
                match request.take():
                    case "save": save()
                    case "stop": save(); sys.exit(request.exit_code)

    The old handlers come back at the end. Only the main thread can have handlers: in any other
    nothing is ever wanted, but for what `peers` are told.
    """

    def __init__(self, peers: Peers | None = None) -> None:
        self._peers = peers
        self._save = False
        self._stop: signal.Signals | None = None
        self._interrupted = 0.0
        self._taken = 0
        self._urgent = False
        self._over = False
        self._old: dict[int, Any] = {}
        self._exit = ExitStack()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (*STOPS, signal.SIGUSR1):
                self._old[number] = signal.signal(number, self._note)
            if self._peers:
                self._exit.enter_context(self._peers.passing_on())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()
        self._over = True
        with suppress(ValueError):  # In another thread: the next signal does it.
            for number, old in self._old.items():
                _set_handler(number, old)
        outer = getattr(self._old.get(self._stop or 0), "__self__", None)
        if kind is None and self._stop and isinstance(outer, StopRequest):
            # What came too late for this block is for the one around it.
            outer._note(self._stop, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # It may run between any two instructions of the program: so it mostly sets fields only.
        if self._over:
            _set_handler(number, self._old[number])
            signal.raise_signal(number)
        elif number == signal.SIGUSR1:
            self._save = self._peers is None or self._peers.first
        elif number == signal.SIGINT and self._interrupted:
            if time.monotonic() - self._interrupted > GRACE:
                raise KeyboardInterrupt
        else:
            self._stop = self._stop or signal.Signals(number)
            if number == signal.SIGINT:
                self._interrupted = time.monotonic()
            if self._urgent:
                self._urgent = False
                raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While its block runs nothing needs to be saved: a wish to stop is Stopped, raised."""
        peers = self._peers if self._old else None
        self._urgent = True
        try:
            if self._stop:
                raise Stopped
            with peers.waking(lambda: self._stop) if peers else nullcontext():
                yield
        finally:
            self._urgent = False

    @property
    def wanted(self) -> Wish | None:
        """What has been asked for and not been taken; "stop" outdoes "save" and stays."""
        return self._look()[0]

    def _look(self) -> tuple[Wish | None, int]:
        """What is wanted, and how many wishes to save others have had."""
        saves, stop = self._peers.hear() if self._peers else (0, None)
        self._stop = self._stop or stop
        if self._stop:
            return "stop", saves
        return "save" if self._save or saves > self._taken else None, saves

    def take(self) -> Wish | None:
        """`wanted`, and the wish to save is taken as heard: a later signal is a new one.

        Call it before the save, so that a signal during the save is not lost.
        """
        wish, saves = self._look()
        # Only where it was seen: a signal may come between any two lines.
        if wish == "save":
            self._save, self._taken = False, saves
        return wish

    def repeat(self) -> None:
        """The wish to save that was taken could not be done: it is one again."""
        self._save = True

    @property
    def exit_code(self) -> int:
        """0, or 128 + the number of the signal that asked to stop: 130 or 143."""
        return 128 + self._stop if self._stop else 0
