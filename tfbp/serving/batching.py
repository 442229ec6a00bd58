"""Dynamic batching: requests that wait for one signature are answered by one call of it.

The queue belongs to the event loop, in which requests arrive and are answered. Calls run in threads
of their own. A batch takes one hand-over to a thread and one back, however many requests it holds.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tfbp.serving.json_tensor import Array
from tfbp.serving.limits import Limits
from tfbp.serving.status import Code, StatusError

Tensors = Mapping[str, Array]

# Only requests of one kind can be joined: equal types and shapes of a row.
Kind = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
# While several clients ask: how long the next request may take, how long the first one waits at
# most, and how often more requests are waited for than usually come. On a loaded machine 64 clients
# of gRPC came 3 at a time without this, 20 to 40 with it, at about two thirds of the CPU time.
_NEXT_SECONDS, _FIRST_SECONDS, _PROBE = 0.002, 0.02, 8


@dataclasses.dataclass
class _Request:
    inputs: Tensors
    rows: int | None  # None: it is a call of its own.
    kind: Kind
    arrived: float
    deadline: float
    future: "asyncio.Future[Tensors]"


class Batcher:
    """The queue of one signature and the threads that call it.

    Args:
        run: answers the inputs of a batch, given the seconds until its last deadline.
        limits: batch size, timeout and queue length.
        calls: that may run at once.
    """

    def __init__(
        self,
        run: Callable[[Tensors, float], Tensors],
        limits: Limits,
        calls: int = 1,
    ):
        self._run, self._limits = run, limits
        self._queue: collections.deque[_Request] = collections.deque()
        self._free = calls
        self._calls = 0
        self._usual = 1  # requests in the batches of late
        self._pool = ThreadPoolExecutor(calls, "batching")
        self._looks = False  # whether a look at the queue is due in this turn of the loop
        self._timer: asyncio.TimerHandle | None = None

    def submit(
        self, inputs: Tensors, rows: int | None, seconds: float | None = None
    ) -> "asyncio.Future[Tensors]":
        """Returns the future answer to `inputs`. Cancelled in time, it never runs.

        Args:
            inputs: name → array.
            rows: size of the first dimension of all of them, along which requests are joined.
                None where they have none that is open: then they are a call of their own.
            seconds: how long the answer is of use, at most and by default the limits' deadline.

        Raises:
            StatusError: the queue is full (RESOURCE_EXHAUSTED).
        """
        if len(self._queue) >= self._limits.max_queue:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                "The batch scheduling queue to which this task was submitted is full",
            )
        kind = tuple((name, value.dtype, value.shape[1:]) for name, value in inputs.items())
        most = self._limits.deadline_seconds
        now = time.monotonic()
        deadline = now + (most if seconds is None else min(seconds, most))
        loop = asyncio.get_running_loop()
        request = _Request(inputs, rows, kind, now, deadline, loop.create_future())
        self._queue.append(request)
        self._start_soon(loop)
        return request.future

    def close(self) -> None:
        """Ends the threads once they have done what they are at. Nobody may submit any more."""
        self._pool.shutdown()

    def _start_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts calls after this turn of the loop, or a little later where more rows will come."""
        if not self._looks:
            self._looks = True
            loop.call_soon(self._wait_for_more, loop, 0)

    def _wait_for_more(self, loop: asyncio.AbstractEventLoop, before: int) -> None:
        """Waits as long as requests come, for about as many as the last batches had.

        So the requests of many clients are joined, and a lone one does not wait.
        """
        count = len(self._queue)
        if not before < count < self._limits.max_batch_size:
            self._start(loop)
        elif count >= self._usual and (self._usual == 1 or self._calls % _PROBE):
            loop.call_soon(self._wait_for_more, loop, count)
        elif time.monotonic() - self._queue[0].arrived < _FIRST_SECONDS:
            loop.call_later(_NEXT_SECONDS, self._wait_for_more, loop, count)
        else:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the calls that are due, as many as may run."""
        self._looks = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and (batch := self._take(loop)):
            self._free -= 1
            self._calls += 1
            self._usual = max(len(batch), self._usual * 3 // 4)
            self._pool.submit(self._call, batch, loop)

    def _take(self, loop: asyncio.AbstractEventLoop) -> list[_Request]:
        """Returns the requests of the next call; none where nobody waits or more rows may come."""
        while self._queue and self._queue[0].future.done():  # It was given up.
            self._queue.popleft()
        if not self._queue:
            return []
        first = self._queue[0]
        if first.rows is None:
            return [self._queue.popleft()]
        batch, room = [first], self._limits.max_batch_size - first.rows
        kept: collections.deque[_Request] = collections.deque()
        for one in itertools.islice(self._queue, 1, None):
            if one.kind == first.kind and one.rows is not None and one.rows <= room:
                if not one.future.done():
                    batch.append(one)
                    room -= one.rows
            else:
                kept.append(one)
        wait = first.arrived + self._limits.batch_timeout_ms / 1000 - time.monotonic()
        if room > 0 and wait > 0:
            self._timer = loop.call_later(wait, self._start, loop)
            return []
        self._queue = kept
        return batch

    def _call(self, batch: list[_Request], loop: asyncio.AbstractEventLoop) -> None:
        """Answers a batch, in a thread."""
        joined = self._joined(batch) if len(batch) > 1 else None
        answers = [self._alone(one) for one in batch] if joined is None else joined
        with contextlib.suppress(RuntimeError):  # The loop has ended: nobody waits any more.
            loop.call_soon_threadsafe(self._settle, batch, answers, loop)

    def _settle(
        self,
        batch: list[_Request],
        answers: "list[Tensors | Exception]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._free += 1
        self._start_soon(loop)
        for one, answer in zip(batch, answers, strict=True):
            if one.future.done():  # It was given up.
                continue
            if isinstance(answer, Exception):
                one.future.set_exception(answer)
            else:
                one.future.set_result(answer)

    def _alone(self, one: _Request) -> Tensors | Exception:
        try:
            return self._run(one.inputs, _remaining([one]))
        except Exception as error:  # Whatever it is, it goes to whoever asked.
            return error

    def _joined(self, batch: list[_Request]) -> list[Tensors | Exception] | None:
        """Returns the answers by one call. None where it fails: then each is asked by itself."""
        try:
            joined = {
                name: np.concatenate([one.inputs[name] for one in batch])
                for name in batch[0].inputs
            }
            answer = self._run(joined, _remaining(batch))
        except Exception:  # One request's fault, of whatever kind, is not its neighbours'.
            return None
        rows = [one.rows or 0 for one in batch]
        if any(value.shape[:1] != (sum(rows),) for value in answer.values()):
            return None
        ends = itertools.accumulate(rows)
        # Copies, so that a row that is kept does not keep the batch.
        return [
            {name: value[end - size : end].copy() for name, value in answer.items()}
            for size, end in zip(rows, ends, strict=True)
        ]


def _remaining(batch: list[_Request]) -> float:
    """Returns the seconds until the last deadline of a batch.

    Raises:
        TimeoutError: it has passed.
    """
    seconds = max(one.deadline for one in batch) - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
