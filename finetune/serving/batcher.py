"""Dynamic batching: requests that wait while the model computes are computed together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from task_formats import Example, Prediction

T = TypeVar("T")


class QueueFullError(Exception):
    """Too many rows wait already."""


class _Request(NamedTuple):
    examples: Sequence[Example]
    result: asyncio.Future[list[Prediction]]


class Batcher:
    """Predicts the rows of many requests together, in one thread that owns the model.

    A request that finds the model idle is computed at once. Those that arrive meanwhile wait and
    form the next batch, so batches grow with the load. All methods are called in one event loop.

    Args:
        predict: From examples to their predictions, in order.
        max_batch_rows: Rows that are computed together; a single larger request still is.
        max_waiting_rows: Rows that may wait.
    """

    def __init__(
        self,
        predict: Callable[[list[Example]], list[Prediction]],
        *,
        max_batch_rows: int = 256,
        max_waiting_rows: int = 1024,
    ) -> None:
        self._predict = predict
        self._max_batch_rows, self._max_waiting_rows = max_batch_rows, max_waiting_rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: deque[_Request] = deque()
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting_rows(self) -> int:
        """Rows that wait; those being computed do not count."""
        return sum(len(request.examples) for request in self._waiting)

    async def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Returns a prediction per example, in order.

        Raises:
            QueueFullError: Too many rows wait already.
        """
        if self.waiting_rows + len(examples) > self._max_waiting_rows:
            raise QueueFullError
        request = _Request(examples, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await request.result

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the thread that owns the model, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Ends the thread, once the current batch is computed."""
        self._thread.shutdown()

    async def _run(self) -> None:
        """Computes batches until no request waits."""
        while self._waiting:
            batch = self._take()
            examples = [example for request in batch for example in request.examples]
            try:
                predictions = await self.call(partial(self._predict, examples))
            except Exception as error:
                for request in batch:
                    if not request.result.done():
                        request.result.set_exception(error)
                continue
            remaining = iter(predictions)
            for request in batch:
                own = [next(remaining) for _ in request.examples]
                # A request whose client has gone is cancelled.
                if not request.result.done():
                    request.result.set_result(own)

    def _take(self) -> list[_Request]:
        """Removes the oldest waiting requests, as many as fit into one batch."""
        batch = [self._waiting.popleft()]
        rows = len(batch[0].examples)
        while self._waiting and rows + len(self._waiting[0].examples) <= self._max_batch_rows:
            batch.append(self._waiting.popleft())
            rows += len(batch[-1].examples)
        return batch
