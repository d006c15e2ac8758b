"""Requests that wait are computed together, and each gets its own rows."""

import asyncio
import threading

import pytest

from finetune.serving.batcher import Batcher, QueueFullError
from task_formats import Example, Prediction


class Model:
    """Predicts the id of each example; waits for `go`, and keeps the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, examples: list[Example]) -> list[Prediction]:
        self.go.wait()
        self.threads.add(threading.get_ident())
        self.batches.append([example.id for example in examples])
        if any(example.id == "bad" for example in examples):
            raise RuntimeError("not computed")
        return [Prediction(example.id, example.id) for example in examples]


@pytest.fixture
def model():
    return Model()


def make(*ids: object) -> list[Example]:
    return [Example(str(name), {}) for name in ids]


def ids(predictions: list[Prediction]) -> list[str]:
    return [prediction.id for prediction in predictions]


async def wait_until_blocked(batcher: Batcher) -> None:
    """Until the first request is with the model, so that the next ones wait."""
    while batcher.waiting_rows:
        await asyncio.sleep(0.001)


def test_what_waits_is_computed_together_in_one_thread(model):
    async def run() -> list[list[str]]:
        batcher = Batcher(model)
        model.go.clear()
        first = asyncio.create_task(batcher.predict(make(0)))
        await asyncio.sleep(0)
        await wait_until_blocked(batcher)
        others = [asyncio.create_task(batcher.predict(make(n, n + 0.5))) for n in range(1, 6)]
        await asyncio.sleep(0)
        model.go.set()
        answers = [ids(await task) for task in (first, *others)]
        batcher.close()
        return answers

    assert asyncio.run(run()) == [["0"], *([str(n), str(n + 0.5)] for n in range(1, 6))]
    assert [len(batch) for batch in model.batches] == [1, 10]
    assert len(model.threads) == 1


def test_a_batch_has_a_limit_and_a_larger_request_is_still_computed(model):
    async def run() -> None:
        batcher = Batcher(model, max_batch_rows=4)
        requests = [make(0), make(1, 2, 3), make(4), make(*range(5, 12)), make(12)]
        answers = await asyncio.gather(*map(batcher.predict, requests))
        assert [ids(answer) for answer in answers] == [[e.id for e in one] for one in requests]
        batcher.close()

    asyncio.run(run())
    assert [len(batch) for batch in model.batches] == [4, 1, 7, 1]


def test_beyond_the_limit_of_waiting_rows_a_request_is_refused(model):
    async def run() -> None:
        batcher = Batcher(model, max_waiting_rows=3)
        model.go.clear()
        first = asyncio.create_task(batcher.predict(make(0)))
        await asyncio.sleep(0)
        await wait_until_blocked(batcher)
        waiting = asyncio.create_task(batcher.predict(make(1, 2)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.predict(make(3, 4))
        model.go.set()
        assert [ids(await first), ids(await waiting)] == [["0"], ["1", "2"]]
        assert ids(await batcher.predict(make(3, 4))) == ["3", "4"]
        batcher.close()

    asyncio.run(run())


def test_an_error_reaches_the_requests_of_its_batch_and_no_other(model):
    async def run() -> None:
        batcher = Batcher(model, max_batch_rows=2)
        requests = [make(0, 1), make("bad"), make(2), make(3, 4)]
        answers = await asyncio.gather(*map(batcher.predict, requests), return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, RuntimeError, RuntimeError, list]
        batcher.close()

    asyncio.run(run())


def test_a_cancelled_request_does_not_disturb_the_others(model):
    async def run() -> None:
        batcher = Batcher(model)
        model.go.clear()
        first = asyncio.create_task(batcher.predict(make(0)))
        await asyncio.sleep(0)
        await wait_until_blocked(batcher)
        gone, kept = (asyncio.create_task(batcher.predict(make(n))) for n in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        model.go.set()
        assert [ids(await first), ids(await kept)] == [["0"], ["2"]]
        batcher.close()

    asyncio.run(run())


def test_other_work_runs_in_the_same_thread(model):
    async def run() -> int:
        batcher = Batcher(model)
        await batcher.predict(make(0))
        thread = await batcher.call(threading.get_ident)
        batcher.close()
        return thread

    assert {asyncio.run(run())} == model.threads
