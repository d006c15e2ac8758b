"""Signals that ask a run to save a checkpoint or to stop.

| signal | effect | exit code |
|---|---|---|
| SIGUSR1 | save a checkpoint after the current update or evaluation batch, then continue | |
| SIGTERM | save a checkpoint after the current update or evaluation batch, then stop | 143 |
| SIGINT (Ctrl-C) | the same | 130 |
| SIGINT again | stop at once (KeyboardInterrupt) | 130 |

Handlers only set flags. The training loop looks at them between updates, between evaluation
batches and, with `raise_on_stop`, while data is prepared.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

Request = Literal["save", "stop"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop. The exit code after one is 128 + its number."""

SAVE_SIGNALS = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()
"""Signals that ask for a checkpoint. Windows has none."""

ECHO_SECONDS = 0.5
"""A second SIGINT within this time repeats the first, which the terminal and the launcher send."""


class Stopped(KeyboardInterrupt):
    """A signal asked to stop while there was nothing to save."""


class SignalListener:
    """Collects requests to save or to stop while its block runs; the block asks with `take`.

    Previous handlers are restored at the end. Outside the main thread, where Python allows no
    handlers, nothing is ever requested.
    """

    def __init__(self) -> None:
        self._save = False
        self._stop: signal.Signals | None = None
        self._interrupted = 0.0
        self._raises = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalListener":
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP_SIGNALS, *SAVE_SIGNALS):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        outer = getattr(self._previous.get(self._stop or 0), "__self__", None)
        if kind is None and self._stop and isinstance(outer, SignalListener):
            # The block ended before it saw this request: the enclosing block gets it.
            outer._handle(self._stop, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in SAVE_SIGNALS:
            self._save = True
        elif number == signal.SIGINT and self._interrupted:
            if time.monotonic() - self._interrupted > ECHO_SECONDS:
                raise KeyboardInterrupt
        else:
            self._stop = self._stop or signal.Signals(number)
            if number == signal.SIGINT:
                self._interrupted = time.monotonic()
            if self._raises:
                self._raises = False
                raise Stopped

    @contextmanager
    def raise_on_stop(self) -> Iterator[None]:
        """Within the block a request to stop raises Stopped at once: there is nothing to save."""
        self._raises = True
        try:
            if self._stop:
                raise Stopped
            yield
        finally:
            self._raises = False

    def take(self) -> Request | None:
        """Returns what is requested; "stop" comes before "save" and stays.

        A request to save is cleared: a signal that arrives during the save is a new request.
        """
        if self._stop:
            return "stop"
        save, self._save = self._save, False
        return "save" if save else None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the number of the signal that asked to stop: 130 or 143."""
        return 128 + self._stop if self._stop else 0
