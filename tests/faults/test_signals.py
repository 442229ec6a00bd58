"""SIGTERM and SIGINT, sent to real runs: each ends with a checkpoint, and none changes the end."""

import csv
import json
import os
import signal
import time

import keras
import numpy as np
import processes
import pytest

pytestmark = pytest.mark.slow

# A run that gets `SIGNALS` in the middle of its training, in a thread in which TensorFlow reads its
# examples. After a second one that thread does not go on, so that the run has no end of its own.
RECIPE = '''
"""Tells four kinds of random vectors apart."""

import dataclasses
import os
import signal
import threading
import time

import keras
import numpy as np
import tensorflow as tf

import tfbp
from tfbp.data import catalog

SIGNALS = [getattr(signal, name) for name in os.environ["SIGNALS"].split()]
read = 0


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("random?shape=6&classes=4&count=120", "the vectors")


def received(x):
    global read
    read += 1
    if SIGNALS and read == 200:
        for number in SIGNALS:
            signal.pthread_kill(threading.get_ident(), number)  # has come when this returns
        if len(SIGNALS) > 1:
            time.sleep(600)
    return x


def augment(x, seed):
    x = tf.ensure_shape(tf.numpy_function(received, [x], x.dtype), x.shape)
    return x + 0.1 * tf.random.stateless_normal(x.shape, seed)


def data(config):
    return catalog.load_data(config.data, seed=config.seed).augmented(augment)


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    inputs = keras.Input(splits.train.spec[0].shape)
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(8, "relu", name="hidden")(inputs))
    return keras.Model(inputs, keras.layers.Dense(len(splits.classes), name="head")(hidden))


def phases(config):
    return [
        tfbp.Phase("all", trainable=".*", epochs=5, learning_rate=0.01),
        tfbp.Phase("head", trainable="head", epochs=3, learning_rate=0.01),
    ]
'''


class Job:
    """A run in a folder: always the same command."""

    def __init__(self, folder):
        folder.mkdir()
        (folder / "mine.py").write_text(RECIPE)
        self.log = folder / "log"
        self.folder, self.run, self.exports = folder, folder / "run", folder / "exports" / "mine"

    def start(self, *signals):
        # A program that a script runs in the background ignores SIGINT: not so this one.
        command = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from tfbp import commands; sys.exit(commands.main('recipes', sys.argv[1:]))"
        )
        flags = ["run", "mine.py", "--workdir=run", "--export_dir=exports", "--ema=0.9"]
        self.log.unlink(missing_ok=True)
        environment = os.environ | {"SIGNALS": " ".join(signals)}
        return processes.start(command, *flags, cwd=self.folder, env=environment, log=self.log)

    def ends(self, code, process):
        """Waits for the end of a process, and returns what it has said."""
        try:
            ended = process.wait(300)
        finally:
            process.kill()
        said = self.log.read_text()
        assert ended == code, said
        return said

    def rows(self):
        with open(self.run / "history.csv", newline="") as file:
            return [
                {k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)
            ]

    def end(self):
        """Returns everything that the run has come to."""
        result = json.loads((self.run / "result.json").read_text())
        model = keras.models.load_model(self.run / "model.keras", compile=False)
        proofs = [phase["proof"] for phase in result["phases"]]
        return (
            [weight.numpy() for weight in model.weights],
            result["metrics"],
            proofs,
            self.rows(),
        )


def test_a_run_that_is_stopped_again_and_again_ends_like_one_left_alone(tmp_path):
    alone, job = Job(tmp_path / "alone"), Job(tmp_path / "job")
    untouched = alone.start()

    said = job.ends(75, job.start("SIGTERM"))
    assert "Stopping: writing a checkpoint.\n" in said
    assert "run holds a checkpoint. The same command, without --restart, goes on.\n" in said
    assert len(job.rows()) < 5
    first = {path: path.read_bytes() for path in (job.run / "checkpoints").rglob("*.*")}

    said = job.ends(130, job.start("SIGINT", "SIGINT"))
    assert "Stopping: writing a checkpoint. Ctrl-C again stops at once.\n" in said
    assert all(path.read_bytes() == content for path, content in first.items())

    job.ends(75, job.start("SIGINT"))
    assert not (job.run / "result.json").exists()
    assert not job.exports.exists()

    exporting = job.start()
    deadline = time.monotonic() + 120
    while not list(job.exports.glob(".1.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    exporting.send_signal(signal.SIGTERM)
    assert "Stopped. The same command" in job.ends(75, exporting)
    assert not list(job.exports.glob("*"))

    job.ends(0, job.start())
    alone.ends(0, untouched)
    weights, *rest = job.end()
    expected, *others = alone.end()
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rest == others
    assert [path.name for path in job.exports.iterdir()] == ["1"]
    assert not [path for path in job.run.rglob("*") if path.name.endswith((".tmp", ".old"))]
