"""Signals become wishes; the exit codes are the documented ones."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from finetune.cli import app as application
from finetune.cli import main
from finetune.distributed import signals
from finetune.distributed.signals import Stopped, StopRequest

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_nothing_is_wanted_before_a_signal() -> None:
    with StopRequest() as request:
        assert (request.wanted, request.take(), request.exit_code) == (None, None, 0)


def test_save_is_wanted_until_taken_and_then_anew() -> None:
    with StopRequest() as request:
        for _ in range(2):
            send(signal.SIGUSR1)
            assert (request.wanted, request.wanted) == ("save", "save")
            assert (request.take(), request.take()) == ("save", None)
        assert request.exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_stays_wanted_and_outdoes_save(number: int, code: int) -> None:
    with StopRequest() as request:
        send(signal.SIGUSR1)
        send(number)
        assert [request.take() for _ in range(3)] == ["stop"] * 3
        assert request.exit_code == code


def test_second_interrupt_stops_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", -1)
    with StopRequest() as request:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert (request.wanted, request.exit_code) == ("stop", 143)  # the first one asked
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_echo_of_an_interrupt_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 1e9)
    with StopRequest() as request:
        for _ in range(3):
            send(signal.SIGINT)
        assert request.exit_code == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_where_nothing_needs_to_be_saved_a_stop_is_raised(number: int, code: int) -> None:
    with StopRequest() as request:
        for _ in range(2):  # What has come before the block counts in it, too.
            with pytest.raises(Stopped), request.at_once():  # noqa: PT012
                send(signal.SIGUSR1)
                send(number)
                raise AssertionError("not raised at once")
            assert (request.wanted, request.exit_code) == ("stop", code)


def test_many_terminations_are_one() -> None:
    with StopRequest() as request:
        for _ in range(3):
            send(signal.SIGTERM)
        assert request.exit_code == 143


def test_old_handlers_come_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(ZeroDivisionError), StopRequest():  # noqa: PT012
        assert [signal.getsignal(number) for number in HANDLED] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_requests_nest() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            send(signal.SIGUSR1)
        assert (inner.wanted, outer.wanted) == ("save", None)
        send(signal.SIGTERM)
        assert (inner.take(), outer.take()) == ("save", "stop")


def test_a_request_closed_in_another_thread_hears_nothing_more() -> None:
    """Only the main thread can set handlers: the old ones come back with the next signal."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        request = StopRequest()
        request.__enter__()
        thread = threading.Thread(target=request.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
        assert request.wanted is None
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_stop_that_was_not_obeyed_is_for_the_request_around() -> None:
    with StopRequest() as outer:
        with StopRequest():
            send(signal.SIGTERM)
        assert (outer.wanted, outer.exit_code) == ("stop", 143)
    with StopRequest() as outer:
        with pytest.raises(SystemExit), StopRequest():  # noqa: PT012
            send(signal.SIGTERM)
            raise SystemExit
        assert outer.wanted is None


class Told:
    """Peers of which one was told to stop."""

    first = False

    def hear(self):
        return 0, signal.SIGINT

    def passing_on(self):
        return nullcontext()

    def waking(self, told):
        return nullcontext()


def test_who_hears_of_a_stop_ends_with_its_code() -> None:
    with StopRequest(Told()) as request:
        assert (request.take(), request.exit_code) == ("stop", 130)


def test_other_threads_want_nothing() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    found = []

    def work() -> None:
        with StopRequest() as request:
            found.append((request.wanted, [signal.getsignal(number) for number in HANDLED]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


LOOP = """
    import sys, time
    from finetune.distributed import signals
    signals.GRACE = float(sys.argv[1])
    with signals.StopRequest() as request:
        print("ready", flush=True)
        while True:
            wish = request.take()
            if wish:
                print(wish, flush=True)
            if wish == "stop" and sys.argv[2] == "obey":
                sys.exit(request.exit_code)
            time.sleep(0.001)
"""


@pytest.mark.parametrize(
    ("manner", "sent", "heard", "code"),
    [
        ("obey", [signal.SIGTERM], ["stop"], 143),
        ("obey", [signal.SIGINT], ["stop"], 130),
        ("obey", [signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM], ["save", "save", "stop"], 143),
        # Ended by KeyboardInterrupt: Python kills itself with SIGINT, which a shell calls 130.
        ("ignore", [signal.SIGINT, signal.SIGINT], ["stop"], -signal.SIGINT),
    ],
)
def test_process_ends_with_the_documented_code(
    root: Path, manner: str, sent: list[signal.Signals], heard: list[str], code: int
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LOOP), "-1", manner]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number, word in zip(sent, [*heard, None], strict=False):
            process.send_signal(number)
            if word:
                assert process.stdout.readline() == f"{word}\n"
        assert process.wait(60) == code


def test_a_wish_to_save_before_there_is_a_run_kills_nothing() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with signals.save_requests_ignored():
        send(signal.SIGUSR1)
        with StopRequest() as request:
            send(signal.SIGUSR1)
            assert request.take() == "save"
        send(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_command_lets_a_wish_to_save_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(
        application, "get_command", lambda app: heard.append(signal.getsignal(signal.SIGUSR1))
    )
    main(["version"])
    assert heard == [signal.SIG_IGN]
