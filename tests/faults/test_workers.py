"""Workers that are killed, stopped, cut short or unlike: the others end, and all go on later."""

import csv
import json
import re
import signal
import subprocess
import time

import keras
import numpy as np
import pytest

from tfbp import commands

pytestmark = pytest.mark.slow

# In which the others must have ended.
MINUTE = 60

RECIPE = '''
"""Tells four kinds of random vectors apart, slowly."""

import dataclasses
import time

import keras
import tensorflow as tf

import tfbp
from tfbp.data import catalog


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("random?shape=6&classes=4&count=120", "the vectors")
    epochs: int = tfbp.field(6, "of the first phase")
    dropout: float = tfbp.field(0.3, "rate of dropout")
    pause: float = tfbp.field(0.05, "seconds for each example that is read")


def data(config):
    def augment(x, seed):
        def wait(x):
            time.sleep(config.pause)
            return x

        x = tf.ensure_shape(tf.numpy_function(wait, [x], x.dtype), x.shape)
        return x + 0.1 * tf.random.stateless_normal(x.shape, seed)

    return catalog.load_data(config.data, seed=config.seed).augmented(augment)


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    inputs = keras.Input(splits.train.spec[0].shape)
    x = keras.layers.Dense(8, "relu", name="hidden")(inputs)
    x = keras.layers.Dropout(config.dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(len(splits.classes), name="head")(x))


def phases(config):
    return [
        tfbp.Phase("all", trainable=".*", epochs=config.epochs, learning_rate=0.01),
        tfbp.Phase("head", trainable="head", epochs=2, learning_rate=0.01),
    ]
'''
PROGRAM = "import sys; from tfbp import commands; sys.exit(commands.main('', sys.argv[1:]))"
FLAGS = ("mine.py", "--workdir=run", "--export_dir=exports", "--ema=0.9", "--checkpoint_seconds=0")


class Job:
    """A run in a folder: always the same command, by two workers."""

    def __init__(self, folder, start_workers, *flags):
        folder.mkdir()
        self.flags = [*FLAGS, *flags]
        (folder / "mine.py").write_text(RECIPE)
        self.folder, self.run, self._start = folder, folder / "run", start_workers
        self._told = [0, 0]

    def start(self):
        self._told = [len(self._log(worker)) for worker in (0, 1)]
        return self._start(PROGRAM, "run", *self.flags, folders=[self.folder] * 2)

    def _log(self, worker):
        log = self.folder.with_name(f"{self.folder.name}.{worker}.log")
        return log.read_text() if log.exists() else ""

    def said(self, worker):
        """Returns what a worker has said since the last start."""
        return self._log(worker)[self._told[worker] :]

    def until_training(self, processes):
        """Waits for a checkpoint inside a phase that is not there yet."""
        before = self._places()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and all(each.poll() is None for each in processes):
            if any(step for step in (self._places() - before)):
                return
            time.sleep(0.01)
        pytest.fail(self.said(0) + self.said(1))

    def _places(self):
        return {
            int(path.name)
            for path in (self.run / "checkpoints").glob("*")
            if path.name.isdecimal() and path.name != "1"
        }

    def ends(self, processes, *, code=75, lost=()):
        """Waits for the end of all workers but those that are lost, which it kills then."""
        began = time.monotonic()
        for worker, process in enumerate(processes):
            if worker not in lost:
                try:
                    found = process.wait(240 if code == 0 else MINUTE)
                except subprocess.TimeoutExpired:
                    pytest.fail(f"Worker {worker} goes on.\n{self.said(worker)}")
                assert found == code, self.said(worker)
        for worker in lost:
            processes[worker].kill()
            processes[worker].wait()
        return time.monotonic() - began

    def end(self):
        """Returns everything that the run has come to."""
        result = json.loads((self.run / "result.json").read_text())
        model = keras.models.load_model(self.run / "model.keras", compile=False)
        with open(self.run / "history.csv", newline="") as file:
            rows = [
                {k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)
            ]
        proofs = [phase["proof"] for phase in result["phases"]]
        return model.get_weights(), result["metrics"], proofs, rows


def test_a_run_whose_workers_are_lost_again_and_again_ends_like_one_left_alone(
    tmp_path, start_workers
):
    alone, job = (Job(tmp_path / name, start_workers) for name in ("alone", "job"))

    for number, lost in ((signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)):
        processes = job.start()
        job.until_training(processes)
        processes[lost].send_signal(number)
        left = 1 - lost
        seconds = job.ends(processes, lost=[lost])
        assert seconds < MINUTE
        found = re.search(r"Failed: Worker (\d) \(127\.0\.0\.1:\d+\) does not.*", job.said(left))
        assert found, job.said(left)
        assert int(found[1]) == lost
        assert found[0].endswith("Start all again: the run goes on.")
        assert not (job.run / "result.json").exists()

    untouched, processes = alone.start(), job.start()
    job.ends(processes, code=0)
    alone.ends(untouched, code=0)
    weights, *rest = job.end()
    expected, *others = alone.end()
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rest == others
    assert not [path for path in job.run.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_a_request_to_one_worker_stops_all_and_one_alone_can_go_on(
    tmp_path, start_workers, monkeypatch
):
    job = Job(tmp_path / "job", start_workers, "--dropout=0")
    processes = job.start()
    job.until_training(processes)
    processes[1].send_signal(signal.SIGTERM)
    job.ends(processes)
    for worker in (0, 1):
        assert f"Stopped on request. {job.run} holds a checkpoint. The same" in job.said(worker)

    one = Job(tmp_path / "one", start_workers, "--dropout=0")
    monkeypatch.chdir(one.folder)
    assert commands.main("", ["run", *one.flags]) == 0
    monkeypatch.chdir(job.folder)
    assert commands.main("", ["run", *job.flags]) == 0
    weights, metrics, _, rows = job.end()
    expected, others, _, course = one.end()
    for ours, theirs in zip(weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for split, found in metrics.items():
        assert found["loss"] == pytest.approx(others[split]["loss"], rel=1e-5)
    for ours, theirs in zip(rows, course, strict=True):
        assert (ours["phase"], ours["epoch"]) == (theirs["phase"], theirs["epoch"])
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)


REFUSED = """
import contextlib, io, json, os, sys
from tfbp import commands
worker = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
for flags in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = commands.main("", ["run", *flags[worker]])
    print(json.dumps([code, said.getvalue()]))
"""


def test_workers_that_are_not_alike_are_refused_at_the_start(tmp_path, start_workers):
    mine = ["mine.py", "--workdir=run"]
    for worker, folder in enumerate((tmp_path / "0", tmp_path / "1")):
        folder.mkdir()
        (folder / "mine.py").write_text(RECIPE)
        other = RECIPE.replace('"relu"', '"tanh"') if worker else RECIPE
        (folder / "other.py").write_text(other)
        rows = [[*range(i, i + 6), i % 4] for i in range(40)]
        rows[7][3] += worker
        lines = [",".join("abcdefy"), *(",".join(map(str, row)) for row in rows)]
        (folder / "data.csv").write_text("\n".join(lines))
    cases = {
        "a flag": [[*mine, "--seed=1"], [*mine, "--seed=2"]],
        "data": [[*mine, "--data=csv:data.csv?target=y&validation=0"]] * 2,
        "the recipe": [["other.py", "--workdir=run"]] * 2,
        "another recipe": [["mine.py", "--workdir=run"], ["other.py", "--workdir=run"]],
    }
    folders = [tmp_path / "0", tmp_path / "1"]
    processes = start_workers(REFUSED, json.dumps(list(cases.values())), folders=folders)
    said = []
    for worker, process in enumerate(processes):
        text = (tmp_path / f"{worker}.{worker}.log").read_text
        assert process.wait(300) == 0, text()
        lines = [line for line in text().splitlines() if line.startswith("[")]
        said.append(dict(zip(cases, map(json.loads, lines), strict=True)))
    what = {
        "a flag": r"`seed` \(2, not 1\)",
        "data": r"`examples` \('\w+', not '\w+'\)",
        "the recipe": r"`code` \('\w+', not '\w+'\)",
        "another recipe": r"`recipe` \('other', not 'mine'\), `code` .*",
    }
    for case, differs in what.items():
        for code, text in (each[case] for each in said):
            assert code == 2
            error = (
                rf"Error: Worker 1 \(127.0.0.1:\d+\) differs from Worker 0 \(127.0.0.1:\d+\) in "
                rf"{differs}\. All workers must run the same command"
            )
            assert re.search(error, text), text
    assert not any((folder / "run").exists() for folder in folders)
