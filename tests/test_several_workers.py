"""Two processes that train together give what one gives, and the first alone writes."""

import fcntl
import functools
import json
import os
import pathlib
import random
import re

import numpy as np
import pytest

from tfbp import commands, driver
from tfbp.caching import row_file
from tfbp.running import execute
from tfbp.workers import strategy

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "my", "log"]
TEXT = " ".join(random.Random(0).choices(WORDS, k=200))

# A body that the first phase freezes, and a normalisation that the second one trains or not.
RECIPE = '''
"""Tells three kinds of small images apart."""

import dataclasses

import keras

import tfbp
from tfbp.data import catalog


@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    data: str = tfbp.field("random?shape=6,6,3&classes=3&count=77", "images with labels")
    dropout: float = tfbp.field(0.0, "rate of dropout")
    flip: bool = tfbp.field(False, "whether images are mirrored")
    shift: float = tfbp.field(0.0, "largest shift")
    batch_norm: str = tfbp.field("frozen", "in the second phase")
    head_rate: float = tfbp.field(0.1, "learning rate of the first phase")
    epochs: int = tfbp.field(2, "of each phase")


def data(config):
    splits = catalog.load_data(config.data, seed=config.seed, size=6)
    return splits.augmented(tfbp.augmentation(flip=config.flip, shift=config.shift))


def task(config, splits):
    return tfbp.Classification(splits.classes)


def model(config, splits):
    x = inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="body_conv")(keras.layers.Rescaling(1 / 255)(x))
    x = keras.layers.BatchNormalization(synchronized=True, name="body_norm")(x)
    x = keras.layers.Dense(6, "tanh", name="head_hidden")(keras.layers.Flatten()(x))
    x = keras.layers.Dropout(config.dropout)(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def phases(config):
    every = {"epochs": config.epochs, "optimizer": "sgd"}
    last = {"learning_rate": 0.1, "batch_norm": config.batch_norm, "clip_norm": 0.5}
    return [
        tfbp.Phase("head", "head.*", learning_rate=config.head_rate, **every),
        tfbp.Phase("all", ".*", **last, **every),
    ]
'''

MLP = ["--data=random?shape=4,4,1&classes=3&count=61", "--layers=16,8,3", "--epochs=2"]
VGG16 = [
    "--data=random?shape=32,32,3&classes=2&count=26",
    *("--weights=random", "--allow=random-frozen", "--last_block=2"),
    *("--head_epochs=2", "--tune_epochs=2", "--tune_rate=1e-4", "--batch_size=7"),
]
LSTM_LM = [
    *("--data=text:text.txt", "--tokens=char", "--steps=8", "--units=8", "--embedding=6"),
    *("--epochs=1", "--clip_norm=0.05"),
]
MINE = ["mine.py", "--allow=random-frozen"]
# Batches of 7 are uneven for two workers, and so is the last one of each epoch.
RUNS = {
    "linear_regression": ["linear_regression", "--data=line", "--epochs=4", "--batch_size=7"],
    "backprop": ["backprop", *MLP, "--batch_size=7"],
    "mlp": ["mlp", *MLP, "--l2=1e-3", "--batch_size=7"],
    "vgg16 cached": ["vgg16", *VGG16],
    "vgg16": ["vgg16", *VGG16, "--nocache"],
    "lstm_lm clipped": ["lstm_lm", *LSTM_LM, "--batch_size=7"],
    "augmented, accumulated, averaged": [
        *MINE,
        *("--flip", "--shift=0.2", "--accumulate=2", "--ema=0.8", "--batch_size=7"),
    ],
    "cached, stopped early": [
        *(*MINE, "--data=random?shape=6,6,3&classes=3&count=200", "--epochs=4"),
        *("--head_rate=0.8", "--early_stopping=1", "--batch_size=50"),
    ],
    # The last batch is one example: the slice of one worker is empty.
    "normalised together": [*MINE, "--batch_norm=train", "--batch_size=61", "--gradients=2"],
    "batches of one": [*MINE, "--epochs=1", "--batch_size=1"],
}
DROPOUT = [*MINE, "--dropout=0.5", "--flip", "--batch_size=7"]
APART = "vgg16 cached"  # run by each worker in a folder of its own

PROGRAM = """
import hashlib, json, os, pathlib, sys
import numpy as np
from tfbp import commands, driver
from tfbp.errors import CheckFailed, UserError
from tfbp.caching.row_file import Rows
from tfbp.caching import cache as feature_cache
from tfbp.running import execute, same_run
from tfbp.training import loop
from tfbp.workers import strategy

feature_cache.seconds_saved = lambda *arguments: 1.0
recipes, runs = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
top, worker = pathlib.Path.cwd().parent, json.loads(os.environ["TF_CONFIG"])["task"]["index"]
write, train = Rows._write, loop.train
computed = []


def noted(self, block, rows):
    computed.append([self.folder.name, block])
    write(self, block, rows)


def tampered(model, *arguments, **settings):
    done = train(model, *arguments, **settings)
    weight = model.trainable_variables[0]
    weight.assign(weight * (1 + 1e-6))
    return done


def run_without_export(module, config):
    built = driver.build(module, config, strategy.resolve("auto"))
    code = same_run.of_code(pathlib.Path(module.__file__))
    with built.workers.watched():
        return execute.execute(built, config.workdir, same_run.identity(built), code)


Rows._write = noted
for name, (folders, flags) in runs.items():
    os.chdir(top / folders[worker])
    computed.clear()
    make = driver.run if folders[0] != folders[1] else run_without_export
    loop.train = tampered if name == "tampered" and worker == 1 else train
    module, config = commands.flags.recipe_and_config(recipes, flags, about="")
    try:
        run = make(module, config)
    except CheckFailed as error:
        found = {"error": str(error)}
    else:
        found = {
            "weights": [hashlib.sha256(np.asarray(each)).hexdigest() for each in run.model.weights],
            "history": run.history,
            "result": run.result,
            "computed": computed,
        }
    (top / f"{name}.{worker}.json").write_text(json.dumps(found))

alike = run.evaluate(run.splits.test)
try:
    run.evaluate(run.splits.train if worker else run.splits.test)
except UserError as error:
    said = str(error)
(top / f"evaluated.{worker}.json").write_text(json.dumps({"alike": alike, "said": said}))
"""


def flags(name):
    places = [f"--workdir={name}", "--export_dir=exports", "--cache_dir=cache"]
    return [*RUNS.get(name, DROPOUT), *places]


def made(folder):
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    (folder / "mine.py").write_text(RECIPE)


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def flat(value):
    """Returns the numbers of nested mappings by their paths, as keys of one."""
    if not isinstance(value, dict):
        return {"": value}
    return {f"{k}/{rest}": x for k, inner in value.items() for rest, x in flat(inner).items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory, start_workers):
    """Returns a folder with all runs by two workers, and what each worker says of each."""
    top = tmp_path_factory.getbasetemp() / "two"
    if "PYTEST_XDIST_WORKER" in os.environ:  # Made once for all processes that run these tests.
        top = tmp_path_factory.getbasetemp().parent / "two"
    top.mkdir(exist_ok=True)
    names = [*RUNS, "tampered", "dropout", "dropout again"]
    with open(top / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / "done").exists():
            run_all(top, names, start_workers)
            (top / "done").touch()
    return top, {
        name: [json.loads((top / f"{name}.{worker}.json").read_text()) for worker in (0, 1)]
        for name in (*names, "evaluated")
    }


def run_all(top, names, start_workers):
    for name in ("0", "1", "shared"):
        made(top / name)
    runs = {
        name: (["0", "1"] if name == APART else ["shared", "shared"], flags(name)) for name in names
    }
    processes = start_workers(
        PROGRAM, str(RECIPES), json.dumps(runs), folders=[top / "0", top / "1"]
    )
    codes = [process.wait(3600) for process in processes]
    # What one says is often only that the other is gone.
    assert codes == [0, 0], "\n".join((top / f"{i}.{i}.log").read_text() for i in (0, 1))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Returns from a run's name what one worker makes of it, without a cache."""
    folder = tmp_path_factory.mktemp("one") / "runs"
    made(folder)

    @functools.cache
    def run(recipe, *flags):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            module, config = commands.flags.recipe_and_config(
                RECIPES, [recipe, *flags, "--nocache"], about=""
            )
            built = driver.build(module, config, strategy.resolve("one"))
            return execute.execute(built, None, {}, {})

    return lambda name: run(*(flag for flag in RUNS[name] if flag != "--nocache"))


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_give_the_result_of_one(name, two, one, monkeypatch):
    top, _ = two
    monkeypatch.chdir(top / ("0" if name == APART else "shared"))
    theirs, expected = driver.load(name, RECIPES), one(name)
    assert theirs.strategy.num_replicas_in_sync == 1
    for other, ours in zip(theirs.model.weights, expected.model.weights, strict=True):
        np.testing.assert_allclose(other, ours, rtol=1e-5, atol=1e-5)
    assert [row["phase"] for row in theirs.history] == [row["phase"] for row in expected.history]
    rows = zip(*(without_seconds(each.history) for each in (theirs, expected)), strict=True)
    for other, ours in rows:
        del other["phase"], ours["phase"]
        # Keras's variance over replicas is a difference of two sums, and its gradient as rounded.
        norms = {name: (other.pop(name), ours.pop(name)) for name in list(ours) if "norm" in name}
        assert other == pytest.approx(ours, rel=1e-5, abs=1e-5)
        for found, norm in norms.values():
            assert found == pytest.approx(norm, rel=1e-3)
    assert flat(theirs.result["metrics"]) == pytest.approx(
        flat(expected.result["metrics"]), rel=1e-5, abs=1e-5
    )
    steps = [[phase["steps"] for phase in each.result["phases"]] for each in (theirs, expected)]
    assert steps[0] == steps[1]


def test_all_workers_end_with_the_same_weights_history_and_metrics(two):
    _, found = two
    for name in [*RUNS, "dropout"]:
        first, second = found[name]
        assert first["weights"] == second["weights"]
        assert without_seconds(first["history"]) == without_seconds(second["history"])
        assert first["result"]["metrics"] == second["result"]["metrics"]


def test_with_dropout_every_run_of_two_workers_ends_with_the_same_bits(two):
    _, found = two
    (first, _), (again, _) = found["dropout"], found["dropout again"]
    assert first["weights"] == again["weights"]
    assert without_seconds(first["history"]) == without_seconds(again["history"])
    assert first["result"]["metrics"] == again["result"]["metrics"]
    assert first["weights"] != found["batches of one"][0]["weights"]


def test_a_worker_with_other_weights_is_found_out(two):
    _, found = two
    said = "After phase 'head' workers have other weights than worker 0: 1."
    assert found["tampered"] == [{"error": said}] * 2


def test_all_workers_must_evaluate_the_same_examples(two):
    _, found = two
    for each, run in zip(found["evaluated"], found["dropout again"], strict=True):
        assert each["alike"] == run["result"]["metrics"]["test"]
        said = r"Worker 1 \(.*\) differs from Worker 0 \(.*\) in `examples` \('\w+', not '\w+'\)\."
        assert re.match(said, each["said"])


def test_early_stopping_stops_all_at_the_same_epoch(two):
    _, found = two
    phases = [each["result"]["phases"] for each in found["cached, stopped early"]]
    for ours, theirs in zip(*phases, strict=True):
        assert ours["stopped_epoch"] == theirs["stopped_epoch"]
        assert ours["best_epoch"] == theirs["best_epoch"]
    assert any(phase["stopped_epoch"] for phase in phases[0])


@pytest.mark.parametrize("name", ["vgg16 cached", "cached, stopped early"])
def test_phases_learn_from_cached_features(two, name):
    _, found = two
    result = found[name][0]["result"]
    rows = [phase["features"].get("rows") for phase in result["phases"]]
    assert rows[0] == result["data"]["sizes"]["train"]
    assert all("obstacle" in phase["features"] for phase in found["vgg16"][0]["result"]["phases"])


def test_on_a_shared_disk_each_block_of_features_is_computed_by_one_worker(two):
    _, found = two
    computed = [
        tuple(block) for each in found["cached, stopped early"] for block in each["computed"]
    ]
    assert len(computed) == len(set(computed))
    assert sorted(block for _, block in computed) == [0, 0, 1, 2]  # of validation, and of training


def test_on_separate_disks_each_worker_fills_its_own_cache_and_the_chief_alone_writes(two):
    top, found = two
    first, second = (each["computed"] for each in found[APART])
    assert first == second != []
    mine = {"mine.py", "text.txt", "cache"}
    assert {path.name for path in (top / "1").iterdir()} == mine
    assert {path.name for path in (top / "0").iterdir()} == mine | {APART, "exports"}
    caches = [
        sorted(path.name for path in (top / worker / "cache").iterdir() if row_file.is_cache(path))
        for worker in ("0", "1")
    ]
    assert caches[0] == caches[1] != []


def test_a_run_leaves_one_set_of_files(two):
    top, found = two
    for name in RUNS:
        run = top / ("0" if name == APART else "shared") / name
        result = found[name][0]["result"]
        assert {path.name for path in run.iterdir()} - {"labels.txt", "vocabulary.json"} == {
            *("config.json", "flags.txt", "history.csv", "manifest.json", "model.keras"),
            *("result.json", "tensorboard"),
        }
        for phase in result["phases"]:
            logs = list((run / "tensorboard" / phase["name"]).rglob("events*"))
            assert len(logs) == len({log.parent for log in logs}) >= 1
    assert [path.name for path in (top / "0" / "exports" / "vgg16").iterdir()] == ["1"]
