"""Signals to one of several processes, made known to all of them at once.

Nobody waits for anybody: who is called counts the call where all can read it, and each process
reads it between two of its passes.
"""

import os
import signal
import socket
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Thread
from typing import NamedTuple

from accelerate import Accelerator
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune.distributed.collectives import all_reduce_max

_SAVES, _KIND = 2**32, 2**16
_STOPS = {signal.SIGTERM: _SAVES, signal.SIGINT: _SAVES * _KIND}
"""Of the sum of all calls: wishes to save are counted below it, the stops of each kind above."""

_POLL = 0.2
"""Seconds between two looks of a process that does not make passes."""
_FAREWELL = 1.0
"""Seconds that a last call has; the machine that counts it may be gone."""


class Heard(NamedTuple):
    """The calls that all processes have had so far."""

    saves: int
    stop: signal.Signals | None
    """With which signal they were to stop, if they were."""


class Calls:
    """The calls of one job, on any of its processes, which all make this at the same point.

    They are counted where the processes first met, over connections of their own: there they may
    be read and added to from any thread, whatever the processes do.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        # A store may outlive a job that is started anew, and a process may have several jobs.
        first = accelerator.is_main_process
        (name,) = all_reduce_max([time.time_ns() if first else 0], accelerator)
        self._name, self.first = f"gptft/{name}", first
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(*where, wait_for_workers=False)

    def tell(self, number: int) -> None:
        """Counts a signal to this process. The first one's own wishes to save need no telling."""
        if number in _STOPS:
            self._add(_STOPS[signal.Signals(number)])
        elif number == signal.SIGUSR1 and not self.first:
            self._add(1)

    def hear(self) -> Heard:
        """What all were told; wishes to save are the first process's, which writes for all."""
        calls = self._add(0)
        stops = [n for n, unit in _STOPS.items() if calls // unit % _KIND]
        return Heard(calls % _SAVES if self.first else 0, stops[0] if stops else None)

    def _add(self, number: int) -> int:
        # Where the first process has died there is nobody to talk to: the next exchange says so.
        with suppress(DistError):
            return self._store.add(self._name, number)
        return 0

    @contextmanager
    def waking(self, told: Callable[[], object]) -> Iterator[None]:
        """While its block runs a stop that a peer was told interrupts this process, too.

        Unless it was `told` itself. For work that does not look at calls between its steps.
        """
        over = Event()
        thread = Thread(target=self._wake, args=(over, told), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_FAREWELL)
            if self.hear().stop:
                # The calls may be counted in this very process, and the others look now and then.
                time.sleep(3 * _POLL)

    def _wake(self, over: Event, told: Callable[[], object]) -> None:
        while not over.wait(_POLL):
            if stop := self.hear().stop:
                if not told():
                    interrupt_main(stop)
                return

    @contextmanager
    def passing_on(self) -> Iterator[None]:
        """Tells signals while its block runs. Their handlers must be set in Python.

        From a thread: a handler has to wait until the main thread is back in Python, and that may
        be a backward pass later.
        """
        inlet, outlet = socket.socketpair()
        inlet.setblocking(False)
        # What is signalled to a child, were a library to fork one here, is not for the run.
        os.register_at_fork(after_in_child=partial(_forget, inlet))
        thread = Thread(target=_listen, args=(outlet, self.tell), daemon=True)
        thread.start()
        old = signal.set_wakeup_fd(inlet.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            with suppress(ValueError):  # In another thread than the main one there is no way back.
                signal.set_wakeup_fd(old)
            inlet.close()
            thread.join(_FAREWELL)


def _forget(inlet: socket.socket) -> None:
    """In a child: signals to it go no further, if they did until now."""
    if inlet.fileno() >= 0:
        signal.set_wakeup_fd(-1)


def _listen(outlet: socket.socket, tell: Callable[[int], None]) -> None:
    """Tells the numbers of signals, until the other end is closed."""
    with outlet:
        while numbers := outlet.recv(64):
            for number in numbers:
                tell(number)


def connect(accelerator: Accelerator) -> Calls | None:
    """The calls of a job that has several processes."""
    return Calls(accelerator) if accelerator.num_processes > 1 else None
