"""Dynamic batching: requests that wait for one signature are answered by one call of it."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from tfbp.serving.json_tensor import Array
from tfbp.serving.limits import Limits
from tfbp.serving.status import Code, StatusError

Tensors = Mapping[str, Array]

# Only requests of one kind can be joined: equal types and shapes of a row.
Kind = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


@dataclasses.dataclass
class _Request:
    inputs: Tensors
    rows: int | None  # None: it is a call of its own.
    kind: Kind
    arrived: float
    deadline: float
    future: "Future[Tensors]"


class Batcher:
    """The queue of one signature and the threads that empty it.

    Args:
        run: answers the inputs of a batch, given the seconds until its last deadline.
        limits: batch size, timeout and queue length.
        threads: calls that may run at once.
    """

    def __init__(
        self,
        run: Callable[[Tensors, float], Tensors],
        limits: Limits,
        threads: int = 1,
    ):
        self._run, self._limits = run, limits
        self._queue: collections.deque[_Request] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name="batching", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, inputs: Tensors, rows: int | None, seconds: float | None = None
    ) -> "Future[Tensors]":
        """Returns the future answer to `inputs`. Cancelled in time, it never runs.

        Args:
            inputs: name → array.
            rows: size of the first dimension of all of them, along which requests are joined.
                None where they have none that is open: then they are a call of their own.
            seconds: how long the answer is of use, at most and by default the limits' deadline.

        Raises:
            StatusError: the queue is full (RESOURCE_EXHAUSTED).
        """
        kind = tuple((name, value.dtype, value.shape[1:]) for name, value in sorted(inputs.items()))
        most = self._limits.deadline_seconds
        now = time.monotonic()
        deadline = now + (most if seconds is None else min(seconds, most))
        request = _Request(inputs, rows, kind, now, deadline, Future())
        with self._changed:
            if len(self._queue) >= self._limits.max_queue:
                raise StatusError(
                    Code.RESOURCE_EXHAUSTED,
                    "The batch scheduling queue to which this task was submitted is full",
                )
            self._queue.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Ends the threads once what is queued has been answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _take(self) -> list[_Request]:
        """Returns the requests of the next batch; none when the batcher is closed and empty."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if not self._queue:
                return []
            batch = [self._queue.popleft()]
            if batch[0].rows is None:
                return batch
            until = batch[0].arrived + self._limits.batch_timeout_ms / 1000
            while self._fill(batch) and not self._closed:
                remaining = until - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            return batch

    def _fill(self, batch: list[_Request]) -> bool:
        """Moves what fits from the queue into the batch, and returns whether more would fit."""
        room = self._limits.max_batch_size - sum(one.rows or 0 for one in batch)
        kept = []
        while self._queue and room > 0:
            one = self._queue.popleft()
            if one.kind == batch[0].kind and one.rows is not None and one.rows <= room:
                batch.append(one)
                room -= one.rows
            else:
                kept.append(one)
        self._queue.extendleft(reversed(kept))
        return room > 0

    def _answer(self, batch: list[_Request]) -> None:
        if len(batch) > 1 and self._answer_joined(batch):
            return
        for one in batch:
            try:
                one.future.set_result(self._run(one.inputs, _remaining([one])))
            except BaseException as error:
                one.future.set_exception(error)

    def _answer_joined(self, batch: list[_Request]) -> bool:
        """Returns whether one call has answered all. Where it fails, each is asked by itself."""
        try:
            joined = {
                name: np.concatenate([one.inputs[name] for one in batch])
                for name in batch[0].inputs
            }
            answer = self._run(joined, _remaining(batch))
        except Exception:  # One request's fault is not its neighbours'.
            return False
        rows = sum(one.rows or 0 for one in batch)
        if any(value.shape[:1] != (rows,) for value in answer.values()):
            return False
        start = 0
        for one in batch:
            part = slice(start, start + (one.rows or 0))
            # Copies, so that a row that is kept does not keep the batch.
            one.future.set_result({name: value[part].copy() for name, value in answer.items()})
            start = part.stop
        return True


def _remaining(batch: list[_Request]) -> float:
    """Returns the seconds until the last deadline of a batch.

    Raises:
        TimeoutError: it has passed.
    """
    seconds = max(one.deadline for one in batch) - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
