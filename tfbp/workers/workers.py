"""The processes that train together, step by step, and how they exchange values.

    group = workers.of(strategy)
    with group.watched():                          # a worker that is lost is named
        group.check_alike({"config": settings})    # before anything else is done together
        stop, due = group.any(stop, due)           # what only one worker knows, agreed upon
        path = group.on_chief(publish)             # what one of them does for all

A single process is a group of one worker, for which each of these returns at once. Several call the
same functions in the same order, each from its main thread.
"""

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.errors import CheckFailed, UserError, WorkerLost
from tfbp.workers import interruption, rendezvous

# TensorFlow's coordination service notices within 10 s that a worker is gone. Those that know stay
# until the others know too: one that left earlier would be taken for the lost one.
LINGER_SECONDS = 12.0
LOOK_SECONDS = 10.0
_ABORTED = "Collective ops is aborted"
_OUT_OF_STEP = "mismatch in the collective"
# The name of a worker in the messages of TensorFlow's errors.
_TASK = re.compile(r"/job:(chief|worker)/replica:0/task:(\d+)")
# How they name a worker that lives: it has answered, with the reason why it stopped itself.
_ANSWERED = re.compile(rf'remote target \S+(?= while calling .*\n.*grpc_message:"{_ABORTED})')

JSON = TypeVar("JSON")  # a value of JSON


@functools.cache
def of(strategy: tf.distribute.Strategy) -> "Workers":
    """Returns the workers of a strategy: one, unless it is a `MultiWorkerMirroredStrategy`."""
    return Workers(strategy)


class Workers:
    """The processes of a run.

    Args:
        strategy: the one that the run trains on.
        linger: seconds that this worker stays once it knows that another is lost.
        is_up: whether something listens at an address.

    Attributes:
        count: how many there are.
        index: which one this is, from 0. The first is the chief, the only one that writes.
        addresses: of each, "host:port"; empty for a single worker.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        *,
        linger: float = LINGER_SECONDS,
        is_up: Callable[[str], bool] = rendezvous.is_up,
    ):
        self._strategy, self._linger, self._is_up = strategy, linger, is_up
        self._names: list[str] = []
        self.addresses: list[str] = []
        self.index = 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self._names, self.addresses, self.index = cluster(strategy.cluster_resolver)
        self.count = max(1, len(self.addresses))
        self._next_look = 0.0

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def any(self, *values: bool) -> list[bool]:
        """Returns for each value whether it is true on any worker."""
        rows = self._rows(np.array(values, np.int32))
        return [bool(column.any()) for column in rows.T]

    def longest(self, seconds: float) -> float:
        """Returns the largest of all workers' `seconds`."""
        return float(self._rows(np.array([seconds], np.float32).view(np.int32)).view("f4").max())

    def gather(self, content: bytes) -> list[bytes]:
        """Returns each worker's `content`, in the order of the workers."""
        sizes = self._rows(np.array([len(content)], np.int32))[:, 0]
        rows = self._rows(_padded(content, int(sizes.max())))
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def concatenate(self, part: np.ndarray) -> np.ndarray:
        """Concatenates the parts of all workers, each [n, …] with an n of its own."""
        parts = self.gather(np.ascontiguousarray(part).tobytes())
        whole = [np.frombuffer(each, part.dtype).reshape(-1, *part.shape[1:]) for each in parts]
        return np.concatenate(whole)

    def from_chief(self, content: bytes) -> bytes:
        """Returns the chief's `content`; that of the others is ignored."""
        if self.count == 1:
            return content
        content = content if self.is_chief else b""
        (size,) = self._sum(np.array([len(content)], np.int32))
        return self._sum(_padded(content, int(size))).tobytes()[:size]

    def on_chief(self, function: Callable[[], JSON]) -> JSON:
        """Calls a function on the chief alone, and returns its value on all workers.

        Args:
            function: returns a JSON value.

        Raises:
            tfbp.UserError, tfbp.errors.CheckFailed: raised by the function, on all workers.
        """
        if self.count == 1:
            return function()
        answer: dict[str, Any] = {}
        raised: Exception | None = None
        if self.is_chief:
            try:
                answer = {"value": function()}
            except UserError as error:
                answer, raised = {"mistake": str(error)}, error
            except CheckFailed as error:
                answer, raised = {"failure": str(error)}, error
        answer = json.loads(self.from_chief(json.dumps(answer).encode()))
        if "mistake" in answer:
            raise raised or UserError(answer["mistake"])
        if "failure" in answer:
            raise raised or CheckFailed(answer["failure"])
        return answer["value"]

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Assigns the chief's values to the variables of all workers."""
        if self.count == 1:
            return
        for variable in variables:
            value = np.asarray(variable)
            content = self.from_chief(np.ascontiguousarray(value).tobytes())
            variable.assign(np.frombuffer(content, value.dtype).reshape(value.shape))

    def check_alike(self, identity: Mapping[str, object]) -> None:
        """Refuses workers that do not do the same run.

        Args:
            identity: JSON values by name, which must be equal on all workers; values in a nested
                mapping are compared one by one.

        Raises:
            tfbp.UserError: names the worker, and what differs; on all workers.
        """
        identities = [json.loads(each) for each in self.gather(json.dumps(identity).encode())]
        for worker, theirs in enumerate(identities):
            names = _differing(identities[0], theirs)
            if names:
                raise UserError(
                    f"{self._named(worker)} differs from {self._named(0)} in {', '.join(names)}. "
                    "All workers must run the same command, by the same code, on the same data."
                )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, a worker that no longer answers is an error that names it.

        Raises:
            tfbp.errors.WorkerLost: once the other workers have had time to notice it too.
            tfbp.UserError: the workers do not do the same things in the same order.
            tfbp.workers.interruption.Interrupted: instead of an error that follows a request to
                stop, which other workers have handled before this one.
        """
        try:
            yield
        except RuntimeError as error:
            # From pybind11: TensorFlow was raising an error when the signal's handler raised.
            if interruption.requested() and "error_already_set" in str(error):
                raise interruption.Interrupted from error
            raise
        except tf.errors.OpError as error:
            if self.count == 1 or _ABORTED not in str(error):
                raise
            if interruption.requested():
                raise interruption.Interrupted from error
            if _OUT_OF_STEP in str(error):
                raise UserError(
                    "The workers do not do the same. All of them must call `tfbp.fit`, "
                    "`Run.evaluate` and `Run.export` in the same order, with the same arguments."
                ) from error
            raise self._lost(self._named_in(str(error))) from error

    def check_alive(self) -> None:
        """Looks, at most every 10 s, whether a worker is gone while each works by itself.

        Raises:
            tfbp.errors.WorkerLost: nothing listens at a worker's address; as `watched` raises it.
        """
        if self.count == 1 or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        for worker, address in enumerate(self.addresses):
            if worker == self.index or self._is_up(address):
                continue
            if not self._is_up(address):  # the first failure may have been a name server's
                raise self._lost(worker)

    def _lost(self, worker: int) -> WorkerLost:
        lost = f"{self._named(worker)} does not answer any more. The run cannot go on without it."
        logging.error("%s Waiting %.0f s for the others to notice.", lost, self._linger)
        time.sleep(self._linger)
        return WorkerLost(lost)

    def _named_in(self, message: str) -> int:
        tasks = [f"{job}:{task}" for job, task in _TASK.findall(_ANSWERED.sub("", message))]
        others = [self._names.index(task) for task in tasks if task in self._names]
        # Without another name, this one cannot reach the coordination service, run by the chief.
        return next((index for index in others if index != self.index), 0)

    def _named(self, worker: int) -> str:
        return rendezvous.named(worker, self.addresses[worker])

    def _rows(self, own: np.ndarray) -> np.ndarray:
        """Returns the rows of all workers, int32 [count, n], of which this one is int32 [n]."""
        if self.count == 1:
            return own[np.newaxis]
        rows = np.zeros((self.count, len(own)), np.int32)
        rows[self.index] = own
        return self._sum(rows.reshape(-1)).reshape(rows.shape)

    def _sum(self, own: np.ndarray) -> np.ndarray:
        return self._total(tf.constant(own)).numpy()

    @functools.cached_property
    def _total(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return _total(self._strategy)


def cluster(
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> tuple[list[str], list[str], int]:
    """Returns the names ("worker:1") and addresses ("host:port") of all workers, the chief first,
    and which of them this process is; no names if the resolver knows of no workers.
    """
    spec = resolver.cluster_spec().as_dict()
    jobs = [(job, spec[job]) for job in ("chief", "worker") if job in spec]
    names = [f"{job}:{task}" for job, tasks in jobs for task in range(len(tasks))]
    if not names:
        return [], [], 0
    index = names.index(f"{resolver.task_type}:{resolver.task_id}")
    return names, [address for _, tasks in jobs for address in tasks], index


def _total(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a graph function that sums each worker's int32 [n]."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def total(own: tf.Tensor) -> tf.Tensor:
        def one() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % local == 0
            return context.all_reduce("SUM", tf.where(first, own, 0))

        local = len(strategy.extended.worker_devices)
        return strategy.experimental_local_results(strategy.run(one))[0]

    return total


def _padded(content: bytes, size: int) -> np.ndarray:
    """Returns bytes as int32 [n], padded with zeros to at least `size` bytes."""
    return np.frombuffer(content.ljust(-(-size // 4) * 4, b"\0"), np.int32)


def _differing(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    names: list[str] = []
    for name in {**ours, **theirs}:
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _differing(one, other)
        elif one != other:
            names.append(f"`{name}` ({other!r}, not {one!r})")
    return names
