"""Signals to one of several processes with whole models: all hear them between two passes."""

import functools
import os
import queue
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jobs
import pytest
from together import ODD, SHARDS, train, train_together

import finetune.ledger
import finetune.splits
from finetune import checkpoint
from finetune.calls import Calls
from finetune.loop import Step
from finetune.model import TaskModel
from finetune.news import Interrupted
from finetune.recipe import Recipe
from finetune.run import Run
from finetune.training import events


def train_with_a_call(
    number: int, lag: int, recipe: Recipe, run: Path, stop: int | None = None
) -> int:
    """As `train`; the second process alone gets a signal, in the first forward pass of update 3.

    There the first one waits until that is told, and the second until a state is saved, if one is
    to be. Every process notes its passes, updates and saves; the first state after the signal is
    copied.
    """
    forward, save, tell, rank = TaskModel.forward, Run.save, Calls.tell, os.environ["RANK"]
    begun, told, copy = (run.with_suffix(f".{name}") for name in ("begun", "told", "copy"))
    made: list[str] = []

    def watched(self, batch, lm=False):
        made.append("pass")
        if number and self.training and made[-2:] == ["update 2", "pass"]:
            if rank == "1":
                wait_for(begun)
                os.kill(os.getpid(), number)
            else:
                begun.touch()
            wait_for(told if rank == "0" or number == signal.SIGTERM else copy)
        return forward(self, batch, lm)

    def tell_and_note(self, number):
        tell(self, number)
        told.touch()

    def save_and_copy(self, update, tensors, facts):
        made.append(f"save {update}")
        save(self, update, tensors, facts)
        self._saver.wait()
        if told.exists() and not copy.exists():
            shutil.copytree(run, copy)

    TaskModel.forward, Run.save, Calls.tell = watched, save_and_copy, tell_and_note
    finetune.ledger._LAG = {"cpu": lag}
    code = 0
    try:
        for event in events(recipe, run, resume=True):
            made += [f"update {event.number}"] if isinstance(event, Step) else []
    except Interrupted as interrupted:
        code = interrupted.exit_code
    run.with_suffix(f".notes.{rank}").write_text("\n".join(made))
    return code


def wait_for(path: Path) -> None:
    """Until it exists; a minute at most."""
    ends = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < ends, f"{path.name} never came"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def several(bases, tmp_path_factory) -> Recipe:
    """A job whose every update has several passes, and random numbers."""
    settings = {**ODD, "tokens_per_forward": 40, "head_dropout": 0.1}
    folder = tmp_path_factory.mktemp("data")
    return jobs.recipe("multiple_choice", bases("gpt2"), folder, **settings)


@pytest.fixture(scope="module")
def uncalled(several, tmp_path_factory) -> tuple[Path, list[str]]:
    """Its run in two processes without a signal, and what the first one noted."""
    run = tmp_path_factory.mktemp("uncalled") / "run"
    return run, train_and_read(several, run, 0)


def train_and_read(
    recipe: Recipe, run: Path, number: int, lag: int = 1, stop: int | None = None
) -> list[str]:
    how = functools.partial(train_with_a_call, number, lag)
    train_together(2, recipe, run, stop=stop, how=how)
    return run.with_suffix(".notes.0").read_text().split("\n")


@pytest.mark.parametrize("lag", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_a_wish_of_another_process_is_done_in_the_first_ones_pass(
    lag, several, uncalled, tmp_path
) -> None:
    """While the other is still in its own; also where losses are read after many updates only."""
    whole, quiet = uncalled
    run, copy = tmp_path / "run", tmp_path / "run.copy"
    notes = train_and_read(several, run, signal.SIGUSR1, lag)
    moment = notes.index("update 2") + 2
    assert notes[moment - 1 : moment + 2] == ["pass", "save 2", "pass"]
    assert notes[:moment] + notes[moment + 1 :] == quiet
    jobs.assert_same(run, whole)
    state, warnings = checkpoint.latest(copy / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (2, [])
    train_together(2, several, copy)
    jobs.assert_same(copy, whole)


def test_a_signal_in_a_pass_of_one_ends_the_pass_of_all(several, uncalled, tmp_path) -> None:
    """Whatever they have made of the update is forgotten, and made again by the resumed run."""
    run = tmp_path / "run"
    notes = train_and_read(several, run, signal.SIGTERM, stop=2)
    # The second pass is the idle one that goes with the exchange.
    assert notes[notes.index("update 2") :] == ["update 2", "pass", "pass", "save 2"]
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (2, [])
    train_together(2, several, run)
    jobs.assert_same(run, uncalled[0])


@pytest.mark.parametrize("environment", [{}, pytest.param(SHARDS, marks=pytest.mark.slow)])
def test_a_wish_told_to_every_process_is_done_once(environment, several, tmp_path) -> None:
    """As a launcher tells it, to all of them in the same moment."""
    saved = []
    for number in (0, signal.SIGUSR1):
        run = tmp_path / f"run{number}"
        how = functools.partial(train_with_signals_to_all, number)
        train_together(2, several, run, environment=environment, how=how)
        saved.append(run.with_suffix(".saves").read_text().split())
    jobs.assert_same(tmp_path / "run0", tmp_path / f"run{int(signal.SIGUSR1)}")
    assert len(saved[1]) == len(saved[0]) + 1


def train_with_signals_to_all(
    number: int, recipe: Recipe, run: Path, stop: int | None = None
) -> int:
    """As `train`; each process gets the signal after update 2. Notes every save."""
    save, tell, rank = Run.save, Calls.tell, int(os.environ["RANK"])
    told = [run.with_suffix(f".told{n}") for n in range(2)]

    def note(self, update, tensors, facts):
        with open(run.with_suffix(".saves"), "a") as file:
            print(update, file=file)
        save(self, update, tensors, facts)

    def tell_and_note(self, number):
        tell(self, number)
        told[rank].touch()

    Run.save, Calls.tell = note, tell_and_note
    for event in events(recipe, run, resume=True):
        if number and isinstance(event, Step) and event.number == 2:
            os.kill(os.getpid(), number)
            wait_for(told[0])
            wait_for(told[1])
    return 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_signals_to_a_forked_child_are_its_own() -> None:
    """Libraries end their workers so; a thread tells those of this process, and then no more."""
    heard: queue.Queue[int] = queue.Queue()
    listener = SimpleNamespace(tell=heard.put)
    old = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with Calls.passing_on(listener):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard.get(timeout=60) == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard.empty()
    finally:
        signal.signal(signal.SIGUSR1, old)


@pytest.mark.parametrize("first", [True, False])
def test_only_signals_that_are_for_the_run_are_told(first) -> None:
    """A program that embeds a run may have handlers of its own, for a clock or a child."""
    added: list[int] = []
    calls = SimpleNamespace(first=first, _add=added.append)
    for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGWINCH, signal.SIGUSR2):
        Calls.tell(calls, number)
    assert added == []
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        Calls.tell(calls, number)
    assert added == ([] if first else [1]) + [2**32, 2**48]
    # The gentler one, where both were told.
    for told in (sum(added), sum(added) - added[-1]):
        calls._add = lambda number, told=told: told
        assert Calls.hear(calls) == (0, signal.SIGTERM)
    calls._add = lambda number: 3 + 2 * 2**48
    assert Calls.hear(calls) == (3 if first else 0, signal.SIGINT)


def stop_while_preparing(rank: int, recipe: Recipe, run: Path, stop: int | None = None) -> int:
    """As `train`; one process is told to stop while the first one reads its rows, slowly.

    The second one waits for it then, and not in Python.
    """
    own, seen = int(os.environ["RANK"]), []

    def slowly(example):
        seen.append(example)
        time.sleep(0.5)
        return example

    finetune.splits.read_examples = jobs.watch_examples(slowly)
    if own == rank:
        threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="made ready") as stopped:
        list(events(recipe, run, resume=True))
    assert 0 < len(seen) < 20 if own == 0 else not seen
    return stopped.value.exit_code


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_of_one_ends_the_preparation_of_all(rank, several, tmp_path) -> None:
    how = functools.partial(stop_while_preparing, rank)
    anew = {"GPTFT_CACHE": str(tmp_path / "cache")}
    run = train_together(2, several, tmp_path / "run", stop=1, environment=anew, how=how)
    assert checkpoint.latest(run / "checkpoints") == (None, [])


def stop_with_a_slow_disk(recipe: Recipe, run: Path, stop: int | None = None) -> int:
    """As `train`; when a process has stopped, the state is whole, though it took a while."""
    write = checkpoint.write_tensors

    def slowly(*arguments):
        time.sleep(1.5)
        return write(*arguments)

    checkpoint.write_tensors = slowly
    code = train(recipe, run, stop)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"update-{stop:08d}"]
    return code


def test_none_ends_before_the_state_is_whole(several, tmp_path) -> None:
    """Launchers end all when one has ended."""
    run = train_together(2, several, tmp_path / "run", stop=2, how=stop_with_a_slow_disk)
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (2, [])
