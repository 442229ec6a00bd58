import asyncio
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfbp.serving.batching import Batcher
from tfbp.serving.limits import Limits
from tfbp.serving.status import Code, StatusError


class Model:
    """Doubles x. Holds each call until it is let go, and remembers how many rows each had."""

    def __init__(self, held=True):
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        self.calls = []
        if not held:
            self.go.set()

    def __call__(self, inputs, seconds):
        self.entered.release()
        assert self.go.wait(120)
        self.calls.append(len(inputs["x"]))
        if np.isnan(inputs["x"]).any():
            raise ValueError("no number")
        return {"y": inputs["x"] * 2}


class Queue:
    """A batcher in a loop of its own, which is asked from outside."""

    def __init__(self, model, **limits):
        self._batcher = Batcher(model, Limits(**limits))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def submit(self, *request, **settings):
        """Returns the future answer."""

        async def ask():
            return await self._batcher.submit(*request, **settings)

        return asyncio.run_coroutine_threadsafe(ask(), self._loop)

    def close(self):
        self._batcher.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def rows(*values):
    return {"x": np.array(values, np.float32)}


def answer(future: Future):
    return future.result(20)["y"].tolist()


@pytest.fixture
def batcher():
    made = []

    def make(model, **limits):
        made.append((model, Queue(model, **limits)))
        return made[-1][1]

    yield make
    for model, one in made:
        model.go.set()
        one.close()


def test_requests_that_wait_are_answered_by_one_call(batcher):
    # differs: batching
    model = Model()
    queue = batcher(model)
    first = queue.submit(rows(1), 1)
    assert model.entered.acquire(timeout=120)
    others = [queue.submit(rows(value, -value), 2) for value in range(5)]
    model.go.set()
    assert answer(first) == [2]
    assert [answer(one) for one in others] == [[2 * v, -2 * v] for v in range(5)]
    assert model.calls == [1, 10]


def test_a_batch_is_no_larger_than_its_limit(batcher):
    model = Model()
    queue = batcher(model, max_batch_size=4)
    futures = [queue.submit(rows(0), 1)]
    assert model.entered.acquire(timeout=120)
    futures += [queue.submit(rows(*range(size)), size) for size in (3, 3, 1, 4)]
    model.go.set()
    assert [answer(one) for one in futures] == [[0], [0, 2, 4], [0, 2, 4], [0], [0, 2, 4, 6]]
    assert model.calls == [1, 4, 3, 4]


def test_rows_of_other_shapes_are_not_joined(batcher):
    model = Model()
    queue = batcher(model)
    futures = [queue.submit(rows(0), 1)]
    assert model.entered.acquire(timeout=120)
    futures += [queue.submit(rows([1, 2]), 1), queue.submit(rows(3), 1)]
    futures += [queue.submit(rows([4, 5]), 1), queue.submit(rows(6), 1)]
    model.go.set()
    assert [answer(one) for one in futures] == [[0], [[2, 4]], [6], [[8, 10]], [12]]
    assert model.calls == [1, 2, 2]


def test_a_signature_without_rows_is_asked_one_by_one(batcher):
    model = Model()
    queue = batcher(model)
    futures = [queue.submit(rows(value), None) for value in range(3)]
    model.go.set()
    assert [answer(one) for one in futures] == [[0], [2], [4]]
    assert model.calls == [1, 1, 1]


def test_one_bad_request_does_not_spoil_its_batch(batcher):
    model = Model()
    queue = batcher(model)
    first = queue.submit(rows(1), 1)
    assert model.entered.acquire(timeout=120)
    good, bad, other = (queue.submit(rows(value), 1) for value in (2, np.nan, 3))
    model.go.set()
    assert (answer(first), answer(good), answer(other)) == ([2], [4], [6])
    with pytest.raises(ValueError, match="no number"):
        bad.result(20)


def test_an_answer_without_its_rows_is_asked_for_again_one_by_one(batcher):
    class Sum(Model):
        def __call__(self, inputs, seconds):
            return {"y": super().__call__(inputs, seconds)["y"].sum(keepdims=True)}

    model = Sum()
    queue = batcher(model)
    futures = [queue.submit(rows(1, 1), 2)]
    assert model.entered.acquire(timeout=120)
    futures += [queue.submit(rows(value, value), 2) for value in (2, 3)]
    model.go.set()
    assert [answer(one) for one in futures] == [[4], [8], [12]]
    assert model.calls == [2, 4, 2, 2]


def test_a_full_queue_refuses(batcher):
    model = Model()
    queue = batcher(model, max_queue=2)
    futures = [queue.submit(rows(0), 1)]
    assert model.entered.acquire(timeout=120)
    futures += [queue.submit(rows(1), 1), queue.submit(rows(2), 1)]
    with pytest.raises(StatusError) as caught:
        queue.submit(rows(3), 1).result(20)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    model.go.set()
    assert [answer(one) for one in futures] == [[0], [2], [4]]


def test_a_request_that_was_given_up_is_not_run(batcher):
    model = Model()
    queue = batcher(model)
    first = queue.submit(rows(0), 1)
    assert model.entered.acquire(timeout=120)
    given_up, kept = queue.submit(rows(1), 1), queue.submit(rows(2), 1)
    assert given_up.cancel()
    model.go.set()
    assert (answer(first), answer(kept)) == ([0], [4])
    assert model.calls == [1, 1]


def test_a_batch_waits_for_more_rows_when_it_may(batcher):
    model = Model(held=False)
    queue = batcher(model, batch_timeout_ms=20_000, max_batch_size=3)
    futures = [queue.submit(rows(value), 1) for value in range(3)]
    assert [answer(one) for one in futures] == [[0], [2], [4]]
    assert model.calls == [3]


def test_requests_that_come_together_are_answered_by_one_call_without_waiting_for_more():
    model = Model(held=False)
    batcher = Batcher(model, Limits())

    async def ask(value):
        await asyncio.sleep(0)  # Each has a turn of the loop of its own.
        return (await batcher.submit(rows(value), 1))["y"].tolist()

    async def all_of_them():
        return await asyncio.gather(*map(ask, range(64)))

    assert asyncio.run(all_of_them()) == [[2 * value] for value in range(64)]
    assert model.calls == [64]
    batcher.close()


def test_closing_waits_for_the_call_that_runs():
    model = Model()
    batcher = Batcher(model, Limits())

    async def give_up():
        future = batcher.submit(rows(1), 1)
        await asyncio.to_thread(model.entered.acquire, timeout=120)
        future.cancel()

    asyncio.run(give_up())
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert model.calls == []
    model.go.set()
    closing.join(20)
    assert model.calls == [1]


def test_a_request_whose_deadline_has_passed_is_not_run(batcher):
    model = Model()
    queue = batcher(model)
    first = queue.submit(rows(1), 1)
    assert model.entered.acquire(timeout=120)
    late = queue.submit(rows(2), 1, seconds=0.01)
    time.sleep(0.05)
    model.go.set()
    assert answer(first) == [2]
    with pytest.raises(TimeoutError):
        late.result(20)
    assert model.calls == [1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=20))
def test_each_request_gets_its_own_rows(requests):
    queue = Queue(lambda inputs, _: {"y": inputs["x"] * 2}, max_batch_size=8)
    futures = [queue.submit(rows(*values), len(values)) for values in requests]
    assert [answer(one) for one in futures] == [[2 * v for v in values] for values in requests]
    queue.close()
