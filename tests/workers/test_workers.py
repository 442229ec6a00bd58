"""What workers tell each other: alone, and two real processes."""

import json
import os
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.errors import CheckFailed, UserError, WorkerLost
from tfbp.workers import interruption, strategy, workers
from tfbp.workers.interruption import Interrupted
from tfbp.workers.workers import Workers

ONE = workers.of(tf.distribute.get_strategy())


def test_of_one_process_there_is_one_worker_the_chief():
    for name in ("one", "mirrored"):
        group = workers.of(strategy.resolve(name))
        assert (group.count, group.index, group.is_chief, group.addresses) == (1, 0, True, [])
        assert group is workers.of(strategy.resolve(name))


def test_one_worker_alone_gets_its_own_values():
    assert ONE.any(True, False) == [True, False]
    assert ONE.longest(0.125) == 0.125
    assert ONE.gather(b"abc") == [b"abc"]
    assert ONE.from_chief(b"abc") == b"abc"
    part = np.arange(6, dtype=np.int64).reshape(2, 3)
    np.testing.assert_array_equal(ONE.concatenate(part), part)
    assert ONE.on_chief(lambda: {"a": (1,)}) == {"a": (1,)}
    ONE.check_alike({"a": 1})
    ONE.broadcast([keras.Variable([1.0])])


def test_errors_of_one_worker_are_its_own():
    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        ONE.on_chief(refuse)
    message = "Collective ops is aborted by: /job:worker/replica:0/task:1 is gone"
    with pytest.raises(tf.errors.UnavailableError), ONE.watched():
        raise tf.errors.UnavailableError(None, None, message)


# Run by both processes; each asserts what it sees, and prints the errors that it gets.
PROGRAM = """
import json, os, signal
import keras
import numpy as np
import tensorflow as tf
from tfbp.errors import CheckFailed, UserError
from tfbp.workers import strategy, workers

signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append("of the program"))
where = strategy.resolve("auto")
os.kill(os.getpid(), signal.SIGTERM)
assert signals == ["of the program"]  # TensorFlow's own would swallow it

group = workers.of(where)
me = group.index
assert group.count == where.num_replicas_in_sync == 2
assert group.is_chief == (me == 0)
assert group.addresses == json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"]

assert group.any(me == 0, me == 1, False, True) == [True, True, False, True]
assert group.any() == []
assert group.longest(0.1 if me else 1e-30) == np.float32(0.1)
assert group.longest(3e38 * (1 - me)) == np.float32(3e38)

for contents in ([b"a", b"longer"], [b"", b"abcd"], [b"", b""], [b"\\0\\0", b"\\xff" * 5]):
    assert group.gather(contents[me]) == contents
    assert group.from_chief(contents[me]) == contents[0]

parts = [np.arange(6, dtype=np.int64).reshape(2, 3), np.arange(3, dtype=np.int64).reshape(1, 3) - 9]
whole = group.concatenate(parts[me])
assert whole.dtype == np.int64
np.testing.assert_array_equal(whole, np.concatenate(parts))
np.testing.assert_array_equal(group.concatenate(parts[0][: 2 * me]), parts[0])
assert group.concatenate(parts[0][:0]).shape == (0, 3)
np.testing.assert_array_equal(group.concatenate(parts[0].T[me::2]), parts[0].T[[0, 2, 1]])

# No bit is lost: a zero's sign, what a NaN carries, what lies below the normal numbers.
bits = np.array([0x80000000, 0x7FC12345, 0xFF800001, 0x00000001, 0x7F800000], np.uint32)
with where.scope():
    float32 = keras.Variable(np.zeros(5, "float32"))
    half = keras.Variable(np.zeros(3, "float32"), dtype="float16")
    scalar = keras.Variable(np.zeros((), "int32"), dtype="int32")
if me == 0:
    float32.assign(bits.view(np.float32))
    half.assign([1.5, -0.0, float("inf")])
    scalar.assign(-7)
group.broadcast([float32, half, scalar])
assert np.asarray(float32).view(np.uint32).tolist() == bits.tolist()
assert np.signbit(np.asarray(half).astype("float32")).tolist() == [False, True, False]
assert np.asarray(half).astype("float32").tolist() == [1.5, 0.0, float("inf")]
assert np.asarray(scalar) == -7

calls = []
answer = group.on_chief(lambda: calls.append(me) or {"a": [1, None, "ü"]})
assert answer == {"a": [1, None, "ü"]}
assert calls == [0] * group.is_chief

raised = []
for kind in (UserError, CheckFailed):
    def refuse():
        raise kind("The disk is full.")
    try:
        group.on_chief(refuse)
    except (UserError, CheckFailed) as error:
        raised.append([type(error).__name__, str(error)])

group.check_alike({"config": {"seed": 0, "layers": [1, 2]}, "examples": "9f"})
for identity in (
    {"config": {"seed": me, "layers": [1, 2 + me]}, "examples": "9f"},
    {"config": {"seed": 0}, **({"more": True} if me else {})},
):
    try:
        group.check_alike(identity)
    except UserError as error:
        raised.append(str(error))

@tf.function
def together():
    return where.reduce("SUM", where.run(lambda: tf.constant(1.0)), axis=None)

assert together() == 2
print(json.dumps({"raised": raised, "addresses": group.addresses}))
"""


def test_two_workers_get_the_same_values_and_errors(tmp_path, start_workers):
    folders = [tmp_path / "both"] * 2
    folders[0].mkdir()
    processes = start_workers(PROGRAM, folders=folders)
    logs = [tmp_path / f"both.{index}.log" for index in range(2)]
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(300) == 0, log.read_text()
    first, second = (json.loads(log.read_text().splitlines()[-1]) for log in logs)
    assert first["raised"][0] == second["raised"][0] == ["UserError", "The disk is full."]
    assert [each["raised"][1] for each in (first, second)] == [
        ["CheckFailed", "The disk is full."]
    ] * 2
    chief, other = first["addresses"]
    begin = f"Worker 1 ({other}) differs from Worker 0 ({chief}) in "
    end = ". All workers must run the same command, by the same code, on the same data."
    for each in (first, second):
        assert each["raised"][2:] == [
            f"{begin}`seed` (1, not 0), `layers` ([1, 3], not [1, 2]){end}",
            f"{begin}`more` (True, not None){end}",
        ]


@pytest.fixture
def three():
    """Returns from a task to the workers of a cluster of a chief and two more; none is started."""

    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        def __init__(self, job, task):
            cluster = {"worker": ["b:2", "c:3"], "chief": ["a:1"], "ps": ["d:4"]}
            spec = tf.train.ClusterSpec(cluster)
            resolver = types.SimpleNamespace(cluster_spec=lambda: spec, task_type=job, task_id=task)
            self._resolver = resolver

        cluster_resolver = property(lambda self: self._resolver)

    return lambda job, task, **more: Workers(Strategy(job, task), linger=0.0, **more)


def test_a_chief_of_its_own_comes_first(three):
    chief, last = three("chief", 0), three("worker", 1)
    assert (chief.count, chief.index, chief.is_chief) == (3, 0, True)
    assert (last.count, last.index, last.is_chief) == (3, 2, False)
    assert chief.addresses == last.addresses == ["a:1", "b:2", "c:3"]


@pytest.mark.parametrize(
    ("here", "message", "lost"),
    [
        (("chief", 0), "/job:worker/replica:0/task:1 heartbeat timeout", "Worker 2 (c:3)"),
        (("worker", 1), "/job:chief/replica:0/task:0 is unavailable", "Worker 0 (a:1)"),
        # The message names this worker too, whose error it is, and then the one that is gone.
        (
            ("worker", 0),
            "/job:worker/replica:0/task:0 reports: /job:worker/replica:0/task:1 is gone",
            "Worker 2 (c:3)",
        ),
        # It has it from one who has lost the chief, and lives.
        (
            ("worker", 1),
            "Collective ops is aborted by: Deadline Exceeded\n\n"
            "RPC: /tensorflow.CoordinationService/Heartbeat\n"
            "Additional GRPC error information from remote target /job:worker/replica:0/task:0 "
            "while calling /tensorflow.WorkerService/RecvBuf:\n:UNKNOWN:Error received from peer  "
            '{grpc_status:4, grpc_message:"Collective ops is aborted by: Deadline Exceeded"}',
            "Worker 0 (a:1)",
        ),
        # It has lost the one who does not answer.
        (
            ("worker", 1),
            "Socket closed\nAdditional GRPC error information from remote target "
            "/job:worker/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf:\n"
            ':UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}',
            "Worker 1 (b:2)",
        ),
        # Nobody is named where the service does not answer, which the chief runs.
        (("worker", 0), "failed to connect", "Worker 0 (a:1)"),
    ],
)
def test_the_worker_that_is_lost_is_named(three, here, message, lost):
    error = tf.errors.UnavailableError(None, None, f"Collective ops is aborted by: {message}")
    with pytest.raises(WorkerLost) as caught, three(*here).watched():
        raise error
    assert str(caught.value) == f"{lost} does not answer any more. The run cannot go on without it."
    assert caught.value.__cause__ is error


def test_workers_that_do_not_do_the_same_are_refused(three):
    # As TensorFlow says it.
    message = (
        "Collective ops is aborted by: Shape mismatch in the collective instance 200. Op at device "
        "/job:worker/replica:0/task:1/device:CPU:0 expected shape [1] but another member in the "
        "group expected shape [2]."
    )
    said = r"do not do the same\. All of them must call `tfbp\.fit`"
    with pytest.raises(UserError, match=said), three("worker", 0).watched():
        raise tf.errors.InternalError(None, None, message)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Socket closed"),
        # pybind11's, of an error in whose making the handler has raised.
        RuntimeError("pybind11::error_already_set: MISMATCH of types: REPLACED BY Interrupted"),
    ],
)
def test_an_error_behind_a_request_to_stop_is_the_end_that_was_asked_for(three, error):
    group = three("worker", 0)
    installed, watched, deferred = interruption.install(), group.watched(), interruption.deferred()
    with installed, pytest.raises(Interrupted), watched, deferred:
        os.kill(os.getpid(), signal.SIGTERM)
        raise error
    with pytest.raises((WorkerLost, RuntimeError)) as caught, group.watched():
        raise error
    assert not isinstance(caught.value, Interrupted)


def test_a_worker_that_is_gone_is_noticed_while_each_has_work_of_its_own(three):
    tried, up = [], ["a:1", "b:2", "c:3"]

    def is_up(address):
        tried.append(address)
        return address in up

    chief, other = three("chief", 0, is_up=is_up), three("worker", 0, is_up=is_up)
    chief.check_alive()
    assert tried == ["b:2", "c:3"]
    up.remove("c:3")
    chief.check_alive()  # so soon it does not look again
    assert tried == ["b:2", "c:3"]
    with pytest.raises(WorkerLost) as caught:
        other.check_alive()
    said = "Worker 2 (c:3) does not answer any more. The run cannot go on without it."
    assert str(caught.value) == said
    ONE.check_alive()


def test_other_errors_are_what_they_are(three):
    group = three("worker", 0)
    for error in (tf.errors.InvalidArgumentError(None, None, "shapes"), CheckFailed("no")):
        with pytest.raises(type(error)), group.watched():
            raise error
    assert "TF_CONFIG" not in os.environ
