"""The processes that train together, one step after the other, and what they tell each other.

    its = workers.of(strategy)
    with its.watched():                          # whoever is lost is named
        its.check_alike({"config": settings})    # before anything else is done together
        stop, due = its.any(asked, due)          # what the clock says, agreed upon
        path = its.on_chief(publish)             # what one of them does for all

A process alone is one worker, for which each of these is done at once. Several call the same
functions in the same order, each from its main thread.
"""

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfbp.errors import CheckFailed, UserError, WorkerLost
from tfbp.workers import interruption, rendezvous

# TensorFlow's coordination service notices a worker that is gone within 10 s. Those that know stay
# until the others know too: who left earlier would be taken for the one that was lost.
LINGER_SECONDS = 12.0
LOOK_SECONDS = 10.0
_ABORTED = "Collective ops is aborted"
_OUT_OF_STEP = "mismatch in the collective"
# What TensorFlow calls a worker in the messages of its errors.
_TASK = re.compile(r"/job:(chief|worker)/replica:0/task:(\d+)")
# How it names one that lives: it has answered, with the reason why it has stopped itself.
_ANSWERED = re.compile(rf'remote target \S+(?= while calling .*\n.*grpc_message:"{_ABORTED})')

JSON = TypeVar("JSON")


@functools.cache
def of(strategy: tf.distribute.Strategy) -> "Workers":
    """Returns the workers of a strategy: one but for a `MultiWorkerMirroredStrategy`."""
    return Workers(strategy)


class Workers:
    """The processes of a run.

    Attributes:
        count: how many there are.
        index: which one this is, from 0. The first is the chief, which alone writes.
        addresses: of each, "host:port"; none where there is one.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self._names, self.addresses, self.index = [], [], 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self._names, self.addresses, self.index = cluster(strategy.cluster_resolver)
        self.count = max(1, len(self.addresses))
        self._total = _total(strategy)
        self._next_look = 0.0

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def any(self, *values: bool) -> list[bool]:
        """Returns for each value whether it is true on any worker."""
        return [bool(value) for value in self._rows(np.array(values, np.int32)).any(axis=0)]

    def longest(self, seconds: float) -> float:
        """Returns the largest of what all workers give."""
        return float(self._rows(np.array([seconds], np.float32).view(np.int32)).view("f4").max())

    def gather(self, content: bytes) -> list[bytes]:
        """Returns what each worker gives, in the order of the workers."""
        sizes = self._rows(np.array([len(content)], np.int32))[:, 0]
        rows = self._rows(_padded(content, int(sizes.max())))
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def concatenate(self, part: np.ndarray) -> np.ndarray:
        """Returns the parts of all workers, [n, …] of any n each, one behind the other."""
        parts = self.gather(np.ascontiguousarray(part).tobytes())
        whole = [np.frombuffer(each, part.dtype).reshape(-1, *part.shape[1:]) for each in parts]
        return np.concatenate(whole)

    def from_chief(self, content: bytes) -> bytes:
        """Returns what the chief gives; what others give does not matter."""
        if self.count == 1:
            return content
        content = content if self.is_chief else b""
        (size,) = self._sum(np.array([len(content)], np.int32))
        return self._sum(_padded(content, int(size))).tobytes()[:size]

    def on_chief(self, function: Callable[[], JSON]) -> JSON:
        """Returns what a function returns on the chief, where alone it is called.

        Args:
            function: returns a JSON value.

        Raises:
            tfbp.UserError, tfbp.errors.CheckFailed: what it raises, on all workers.
        """
        if self.count == 1:
            return function()
        answer, raised = {}, None
        if self.is_chief:
            try:
                answer = {"value": function()}
            except UserError as error:
                answer, raised = {"mistake": str(error)}, error
            except CheckFailed as error:
                answer, raised = {"failure": str(error)}, error
        answer = json.loads(self.from_chief(json.dumps(answer).encode()))
        for name, kind in (("mistake", UserError), ("failure", CheckFailed)):
            if name in answer:
                raise raised or kind(answer[name])
        return answer["value"]

    def share(self, variables: Iterable[keras.Variable]) -> None:
        """Gives the variables of all workers the values that they have on the chief."""
        if self.count == 1:
            return
        for variable in variables:
            value = np.asarray(variable)
            content = self.from_chief(np.ascontiguousarray(value).tobytes())
            variable.assign(np.frombuffer(content, value.dtype).reshape(value.shape))

    def check_alike(self, made_of: Mapping[str, object]) -> None:
        """Refuses workers that are not made of the same.

        Args:
            made_of: JSON values by their names; those in a mapping count one by one.

        Raises:
            tfbp.UserError: names the worker, and what differs; on all workers.
        """
        found = [json.loads(each) for each in self.gather(json.dumps(made_of).encode())]
        for worker, theirs in enumerate(found):
            names = _differing(found[0], theirs)
            if names:
                raise UserError(
                    f"{self._named(worker)} differs from {self._named(0)} in {', '.join(names)}. "
                    "All workers must run the same command, by the same code, on the same data."
                )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within it a worker that does not answer any more is an error that names it.

        Raises:
            tfbp.errors.WorkerLost: once the other workers have had the time to notice it too.
            tfbp.UserError: the workers do not do the same things in the same order.
            tfbp.workers.interruption.Interrupted: in the place of an error behind such a request,
                which others have met before this one.
        """
        try:
            yield
        except RuntimeError as error:
            # pybind11's: TensorFlow's error was on its way when the signal's handler raised.
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
        """Notices, at most each 10 s, whether a worker is gone while each has work of its own.

        Raises:
            tfbp.errors.WorkerLost: nothing listens at its address, as `watched` does.
        """
        if self.count == 1 or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        for worker, address in enumerate(self.addresses):
            if worker == self.index or rendezvous.is_up(address):
                continue
            if not rendezvous.is_up(address):  # the first time may have been a name server's hiccup
                raise self._lost(worker)

    def _lost(self, worker: int) -> WorkerLost:
        lost = f"{self._named(worker)} does not answer any more. The run cannot go on without it."
        logging.error("%s Waiting %.0f s for the others to notice.", lost, LINGER_SECONDS)
        time.sleep(LINGER_SECONDS)
        return WorkerLost(lost)

    def _named_in(self, message: str) -> int:
        found = [f"{job}:{task}" for job, task in _TASK.findall(_ANSWERED.sub("", message))]
        others = [self._names.index(name) for name in found if name in self._names]
        # The one who cannot reach the service that notices it has lost the chief, who runs it.
        return next((index for index in others if index != self.index), 0)

    def _named(self, worker: int) -> str:
        return rendezvous.named(worker, self.addresses[worker])

    def _rows(self, own: np.ndarray) -> np.ndarray:
        """Returns the rows of all workers, int32 [count, n], given that of this one, int32 [n]."""
        if self.count == 1:
            return own[np.newaxis]
        rows = np.zeros((self.count, len(own)), np.int32)
        rows[self.index] = own
        return self._sum(rows.reshape(-1)).reshape(rows.shape)

    def _sum(self, own: np.ndarray) -> np.ndarray:
        return self._total(tf.constant(own)).numpy()


def cluster(
    resolver: tf.distribute.cluster_resolver.ClusterResolver,
) -> tuple[list[str], list[str], int]:
    """Returns the names ("worker:1") and addresses ("host:port") of all workers, the chief first,
    and which of them this process is; no names where the resolver knows of no workers.
    """
    spec = resolver.cluster_spec().as_dict()
    jobs = [(job, spec[job]) for job in ("chief", "worker") if job in spec]
    names = [f"{job}:{task}" for job, tasks in jobs for task in range(len(tasks))]
    if not names:
        return [], [], 0
    own = names.index(f"{resolver.task_type}:{resolver.task_id}")
    return names, [address for _, tasks in jobs for address in tasks], own


def _total(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a graph function from int32 [n] of each worker to their sum."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def total(own):
        def one():
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % local == 0
            return context.all_reduce("SUM", tf.where(first, own, 0))

        local = len(strategy.extended.worker_devices)
        return strategy.experimental_local_results(strategy.run(one))[0]

    return total


def _padded(content: bytes, size: int) -> np.ndarray:
    """Returns bytes as int32 [n], filled up with zeros to `size` bytes and whole numbers."""
    return np.frombuffer(content.ljust(-(-size // 4) * 4, b"\0"), np.int32)


def _differing(ours: object, theirs: object) -> list[str]:
    names = []
    for name in {**ours, **theirs}:
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _differing(one, other)
        elif one != other:
            names.append(f"`{name}` ({other!r}, not {one!r})")
    return names
