"""Every way in, taken to its end: each row is trained, killed, resumed, cached, exported and asked.

    python benchmarks/doors.py [--only="two inputs,strings"]

A row has two phases of two epochs. "resumed" has it killed (SIGKILL) in the second of these and
started again, and counts the values of weights, history and metrics that end otherwise than if it
had not been. What the export answers, loaded by `tf.saved_model.load` and asked over HTTP, is
compared with the model; two workers are compared with one, without dropout. The figures are the
largest differences, as shares of the largest value. A row that fails says why; the exit code is 1.
"""

import argparse
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import door_rows
import keras
import numpy as np
import tensorflow as tf

import tfbp
from tfbp.caching import cache as feature_cache
from tfbp.reporting.table import table
from tfbp.serving.server import Server
from tfbp.workers import strategy as strategies

BATCH = 16
KILLED = 8  # the update before which a run is killed: in the second epoch, of five updates
ROWS = 3  # of a request
ON_TWO_WORKERS = ("two inputs", "KerasHub's BERT", "strings")
CLOSE = 1e-4  # of the largest value


class Kill(keras.callbacks.Callback):
    """Ends a run before an update, as a kill does."""

    def __init__(self, end: Callable[[], None]):
        super().__init__()
        self.end, self.updates = end, 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self.updates += 1
        if self.updates == KILLED:
            self.end()


def train(
    name: str,
    folder: pathlib.Path,
    callback: keras.callbacks.Callback | None = None,
    rate: float = 0.2,
) -> tfbp.Run:
    """Trains a row from where its directory stands."""
    feature_cache.seconds_saved = lambda *arguments: 1.0  # Even what is tiny is cached.
    row, strategy = door_rows.ROWS[name], strategies.resolve("auto")
    settings = tfbp.Settings(
        workdir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
        batch_size=BATCH,
        checkpoint_seconds=0,
        allow=("random-frozen",),
    )
    keras.utils.set_random_seed(0)
    splits = row.splits()
    with strategy.scope():
        model = row.model(splits, rate)
    task, callbacks = row.task(splits), [callback] if callback else []
    return tfbp.fit(
        model, splits, task, row.phases(), settings, strategy=strategy, callbacks=callbacks
    )


def otherwise(run: tfbp.Run, other: tfbp.Run) -> int:
    """Returns how many values differ at the end of two runs."""
    return sum(
        not np.array_equal(one, another, equal_nan=True)
        for one, another in itertools.zip_longest(_end(run), _end(other), fillvalue=())
    )


def _end(run: tfbp.Run) -> Iterator[np.ndarray]:
    yield from run.model.get_weights()
    for row in run.history:
        yield np.array([value for name, value in row.items() if name not in ("phase", "seconds")])
    for values in run.result["metrics"].values():
        yield np.array([value for value in values.values() if not isinstance(value, dict)])


def reload(run: tfbp.Run, version: pathlib.Path) -> float:
    """Returns how far the answers of a loaded export are from the model's."""
    request, expected = _question(run)
    serve = tf.saved_model.load(str(version)).signatures["serving_default"]
    specs = serve.structured_input_signature[1]
    given = {name: tf.constant(value, specs[name].dtype) for name, value in request.items()}
    return apart({name: value.numpy() for name, value in serve(**given).items()}, expected)


def ask(run: tfbp.Run, version: pathlib.Path) -> float:
    """Returns how far the answers of a server are from the model's; inputs go by their names."""
    request, expected = _question(run)
    body = {name: _texts(value).tolist() for name, value in request.items()}
    with Server(version.parents[1], port=0, grpc_port=0) as server:
        url = f"http://127.0.0.1:{server.port}/v1/models/{version.parent.name}:predict"
        with urllib.request.urlopen(url, json.dumps({"inputs": body}).encode()) as response:
            answer = json.loads(response.read())["outputs"]
    named = answer if isinstance(answer, dict) else dict.fromkeys(expected, answer)
    return apart({name: np.array(value) for name, value in named.items()}, expected)


def _question(run: tfbp.Run) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    signature = run.task.signatures(run.model, run.splits.test)["serving_default"]
    request = signature.request(ROWS)
    return request, signature.answer(request)


def _texts(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "O":
        return value
    texts = [text.decode() if isinstance(text, bytes) else text for text in value.flat]
    return np.array(texts).reshape(value.shape)


def apart(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Returns the largest difference of floats, as a share of the largest value.

    Raises:
        AssertionError: names or texts differ, or the floats by too much.
    """
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    largest = 0.0
    for name, value in expected.items():
        if value.dtype.kind != "f":
            assert np.array_equal(_texts(found[name]), _texts(value)), name
            continue
        difference = np.abs(found[name] - value).max() / (np.abs(value).max() or 1)
        assert difference <= CLOSE, (name, difference)
        largest = max(largest, float(difference))
    return largest


def kill(name: str, folder: pathlib.Path) -> None:
    """Trains a row in another process, until that kills itself."""
    process = _start(name, folder, "--kill")
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output[-2000:]
    assert not (folder / "run" / "manifest.json").exists()


def share(name: str, folder: pathlib.Path) -> float:
    """Returns how far two workers' weights are from those of one."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, b)]
    processes = []
    for index in range(len(addresses)):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        processes.append(_start(name, folder / "two", "--rate=0", TF_CONFIG=cluster))
    outputs = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(outputs)[-2000:]
    ours, theirs = train(name, folder / "one", rate=0.0), train(name, folder / "two", rate=0.0)
    # Together: a bias that attention's softmax takes out again is but rounding, around 0.
    weights = [
        {"weights": np.concatenate([np.ravel(value) for value in run.model.get_weights()])}
        for run in (theirs, ours)
    ]
    return apart(*weights)


def _start(name: str, folder: pathlib.Path, *flags: str, **environment: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, __file__, f"--train={name}", f"--folder={folder}", *flags],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tried(name: str, folder: pathlib.Path) -> dict[str, str]:
    """Returns what each column says of a row."""
    said: dict[str, str] = {}
    run = train(name, folder / "alone")
    said["trained"] = f"{len(run.history)} epochs"
    kill(name, folder / "killed")
    different = otherwise(run, train(name, folder / "killed"))
    said["resumed"] = f"{different} differ" if different else "to the bit"
    features = run.result["phases"][0]["features"]
    said["cached"] = ", ".join(features.get("cut", ("no",)))
    version = pathlib.Path(run.export(str(folder / "exports" / "door")))
    said["exported"] = f"{run.result['export']['parity']['difference']:.0e}"
    said["reloaded"] = f"{reload(run, version):.0e}"
    said["server"] = f"{ask(run, version):.0e}"
    if name in ON_TWO_WORKERS:
        said["two workers"] = f"{share(name, folder):.0e}"
    return said


COLUMNS = "trained", "resumed", "cached", "exported", "reloaded", "server", "two workers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(door_rows.ROWS), help="rows, between commas")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0.2, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.train:
        killing = Kill(lambda: os.kill(os.getpid(), signal.SIGKILL)) if flags.kill else None
        train(flags.train, flags.folder, killing, flags.rate)
        return
    rows, failed = [("", *COLUMNS)], False
    for name in flags.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = tried(name, pathlib.Path(folder))
            except Exception as error:  # Whatever it is, the other rows are tried.
                said, failed = {"trained": f"{type(error).__name__}: {error}"[:200]}, True
        failed |= "differ" in said.get("resumed", "")
        rows.append((name, *(said.get(column, "") for column in COLUMNS)))
    print(table(rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
