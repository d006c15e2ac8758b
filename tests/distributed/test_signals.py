"""Signals become requests to save or stop, with the documented exit codes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from finetune.cli import app as application
from finetune.cli import main
from finetune.distributed import signals
from finetune.distributed.signals import SignalListener, Stopped

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_request_to_save_is_taken_once() -> None:
    with SignalListener() as listener:
        for _ in range(2):
            send(signal.SIGUSR1)
            assert (listener.take(), listener.take()) == ("save", None)
        assert listener.exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_stop_stays_and_comes_before_save(number: int, code: int) -> None:
    with SignalListener() as listener:
        send(signal.SIGUSR1)
        for _ in range(3):
            send(number)
        assert [listener.take() for _ in range(3)] == ["stop"] * 3
        assert listener.exit_code == code


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1)
    with SignalListener() as listener:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert (listener.take(), listener.exit_code) == ("stop", 143)  # of the first signal
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_echo_of_an_interrupt_is_not_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ECHO_SECONDS", 1e9)
    with SignalListener() as listener:
        for _ in range(3):
            send(signal.SIGINT)
        assert listener.exit_code == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_raised_where_there_is_nothing_to_save(number: int, code: int) -> None:
    with SignalListener() as listener:
        for _ in range(2):  # The second block raises for the signal that came in the first.
            with pytest.raises(Stopped), listener.raise_on_stop():  # noqa: PT012
                send(signal.SIGUSR1)
                send(number)
                raise AssertionError("not raised at once")
            assert (listener.take(), listener.exit_code) == ("stop", code)


def test_previous_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with pytest.raises(ZeroDivisionError), SignalListener():  # noqa: PT012
        assert [signal.getsignal(number) for number in HANDLED] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_a_stop_that_the_inner_listener_did_not_see_reaches_the_outer_one() -> None:
    with SignalListener() as outer:
        with SignalListener():
            send(signal.SIGTERM)
        assert (outer.take(), outer.exit_code) == ("stop", 143)
    with SignalListener() as outer:
        with pytest.raises(SystemExit), SignalListener():  # noqa: PT012
            send(signal.SIGTERM)
            raise SystemExit
        assert outer.take() is None


def test_other_threads_handle_no_signals() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    found = []

    def work() -> None:
        with SignalListener() as listener:
            found.append((listener.take(), [signal.getsignal(number) for number in HANDLED]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]


LOOP = """
    import sys, time
    from finetune.distributed import signals
    signals.ECHO_SECONDS = -1
    with signals.SignalListener() as listener:
        print("ready", flush=True)
        while True:
            request = listener.take()
            if request:
                print(request, flush=True)
            if request == "stop" and sys.argv[1] == "obey":
                sys.exit(listener.exit_code)
            time.sleep(0.001)
"""


@pytest.mark.parametrize(
    ("mode", "sent", "requests", "code"),
    [
        ("obey", [signal.SIGTERM], ["stop"], 143),
        ("obey", [signal.SIGINT], ["stop"], 130),
        ("obey", [signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM], ["save", "save", "stop"], 143),
        # Ended by KeyboardInterrupt: Python ends itself with SIGINT, which a shell reports as 130.
        ("ignore", [signal.SIGINT, signal.SIGINT], ["stop"], -signal.SIGINT),
    ],
)
def test_a_process_ends_with_the_documented_code(
    root: Path, mode: str, sent: list[signal.Signals], requests: list[str], code: int
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LOOP), mode]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number, request in zip(sent, [*requests, None], strict=False):
            process.send_signal(number)
            if request:
                assert process.stdout.readline() == f"{request}\n"
        assert process.wait(60) == code


def test_the_command_line_ignores_requests_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []
    monkeypatch.setattr(
        application, "get_command", lambda app: handlers.append(signal.getsignal(signal.SIGUSR1))
    )
    main(["version"])
    assert handlers == [signal.SIG_IGN]
