import json
import logging
import os
import pathlib
import random
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp import driver, fingerprint, recipe
from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.exporting import versions
from tfbp.exporting.parity import ParityError
from tfbp.modeling import heads
from tfbp.resuming import checkpoints as run_checkpoints
from tfbp.running import directory as run_directory
from tfbp.settings import Settings
from tfbp.tasks.classification import Classification
from tfbp.training import loop
from tfbp.training.phase import Phase
from tfbp.training.proof import ProofFailed

CLASSES = ("dark", "bright")
PHASES = (
    Phase("head", "head.*", epochs=2, learning_rate=0.01),
    Phase("tune", "body/.*_2", epochs=2, learning_rate=0.01, optimizer="rmsprop", clip_norm=1.0),
)
STEPS = 3  # of an epoch: 10 examples in batches of 4


def splits():
    """Returns 10 training images with augmentation, 4 for validation and none for testing."""
    x = np.random.default_rng(0).integers(0, 200, (14, 6, 6, 3), dtype=np.uint8)
    y = np.arange(14) % 2
    x[y == 1] += 55
    transform = augmentation(flip=True, shift=0.2, colour=0.1)
    train = Examples.from_arrays(x[:10], y[:10]).augmented(transform)
    return Splits(train, Examples.from_arrays(x[10:], y[10:]), classes=CLASSES)


def network(classes=2, hidden=(5,)):
    """Returns a small pretrained backbone with a head and dropout; always with equal weights."""
    keras.utils.set_random_seed(1)
    x = images = keras.Input((6, 6, 3))
    for number in (1, 2):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"conv_{number}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{number}")(x)
        x = keras.layers.ReLU()(x)
    body = keras.Model(images, x, name="body")
    return heads.swap_head(body, classes, hidden=hidden, dropout=0.4, preprocess=lambda x: x / 255)


def fit(model=None, *, phases=PHASES, callbacks=(), **settings):
    settings = {"batch_size": 4, "seed": 3, "allow": ("random-frozen",)} | settings
    return driver.fit(
        model or network(),
        splits(),
        Classification(CLASSES),
        phases,
        Settings(**settings),
        callbacks=callbacks,
    )


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Stops a run after a number of steps, as a kill would; the step is not yet in a checkpoint."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Stop


@pytest.fixture(scope="module")
def uninterrupted():
    """Returns a run that nothing stopped and that wrote nothing."""
    return fit()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Returns a folder with a run's directory after each of its checkpoints, and at its end."""
    folder = tmp_path_factory.mktemp("recorded")
    save, places = run_checkpoints.Checkpoints.save, []

    def save_and_copy(self, model, place, **more):
        save(self, model, place, **more)
        self.wait()
        places.append(place)
        shutil.copytree(folder / "end", folder / f"{place.phase} {place.step}")

    with pytest.MonkeyPatch.context() as patch:
        each_step(patch)
        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_copy)
        fit(workdir=folder / "end")
    assert len(places) == 1 + len(PHASES) * (2 * STEPS + 1)
    return folder


def each_step(patch):
    """Makes the loop call for each step alone, and save a checkpoint after it."""
    patch.setattr(loop, "SECONDS_PER_CALL", 0)
    patch.setattr(run_checkpoints.Checkpoints, "due", lambda self: True)


def no_training(*arguments, **settings):
    raise AssertionError("it trains")


def assert_the_same(run, other):
    for ours, theirs in zip(run.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert without_seconds(run.history) == without_seconds(other.history)
    assert run.result["metrics"] == other.result["metrics"]
    assert [phase["proof"] for phase in run.result["phases"]] == [
        phase["proof"] for phase in other.result["phases"]
    ]


# ---- stopped runs


@pytest.mark.parametrize(
    "place",
    [f"0 {2 * STEPS}", "1 0", f"1 {STEPS + 1}", "2 0"],
    ids=["at a phase's last step", "between phases", "inside a phase", "after the last phase"],
)
def test_a_run_goes_on_from_any_checkpoint_to_the_same_end(
    uninterrupted, recorded, tmp_path, place
):
    directory = tmp_path / "run"
    shutil.copytree(recorded / place, directory)
    assert not run_directory.ended(directory)
    run = fit(workdir=directory)
    assert_the_same(run, uninterrupted)
    assert without_seconds(run_directory.history(directory)) == without_seconds(run.history)
    assert not (directory / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_like_one_that_never_was(
    uninterrupted, tmp_path, monkeypatch
):
    each_step(monkeypatch)
    stops = [2, *random.SystemRandom().choices(range(2, 2 * STEPS), k=2)]
    print("stopped after steps", stops)
    for steps in stops:
        with pytest.raises(Stop):
            fit(workdir=tmp_path, callbacks=[StopAt(steps)])
    assert_the_same(fit(workdir=tmp_path), uninterrupted)


def test_a_run_that_has_ended_is_read_and_not_trained_again(uninterrupted, recorded, monkeypatch):
    monkeypatch.setattr(loop, "train", no_training)
    model = network()
    model.set_weights([0 * weight for weight in model.get_weights()])
    run = fit(model, workdir=recorded / "end")
    assert_the_same(run, uninterrupted)
    assert run.evaluate(run.splits.validation) == run.result["metrics"]["validation"]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"seed": 4}, "`seed` (3, not 4)"),
        ({"batch_size": 5}, "`batch_size` (4, not 5)"),
        ({"phases": PHASES[:1]}, "`phases` ("),
        ({"hidden": (6,)}, "`model` ("),
    ],
)
def test_a_directory_of_another_run_is_refused_by_the_field_that_differs(recorded, settings, field):
    settings = dict(settings)
    model = network(hidden=settings.pop("hidden", (5,)))
    with pytest.raises(UserError, match="`workdir` holds another run") as caught:
        fit(model, workdir=recorded / "end", **settings)
    assert field in str(caught.value)


# ---- what a run says


def test_the_result_says_what_was_trained_on_what_and_how_well(recorded):
    run = fit(workdir=recorded / "end")
    result = json.loads((recorded / "end" / "result.json").read_text())
    assert result["seed"] == 3
    assert result["versions"]["keras"] == keras.__version__
    assert result["data"] == {
        "spec": "arrays",
        "sizes": {"train": 10, "validation": 4},
        "classes": list(CLASSES),
    }
    head, tune = result["phases"]
    assert (head["name"], head["epochs"], head["steps"]) == ("head", 2, 2 * STEPS)
    assert head["trained"] == ["head_1", "head"]
    assert head["parameters"] == (4 * 5 + 5) + (5 * 2 + 2)
    assert tune["trained"] == ["body/conv_2"]  # its BatchNormalization stays frozen
    assert tune["parameters"] == 3 * 3 * 4 * 4 + 4
    assert tune["proof"]["trained_layers"] == 1
    assert tune["proof"]["frozen_layers"] == 5
    assert set(result["metrics"]) == {"train", "validation"}

    x, y = run.splits.validation.read(tf.range(4))
    model = keras.models.load_model(recorded / "end" / "model.keras", compile=False)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert result["metrics"]["validation"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["metrics"]["validation"]["accuracy"] == pytest.approx(accuracy)
    assert run.history[-1]["val_loss"] == result["metrics"]["validation"]["loss"]
    assert [(row["phase"], row["epoch"]) for row in run.history] == [
        ("head", 1),
        ("head", 2),
        ("tune", 1),
        ("tune", 2),
    ]


def test_a_batch_larger_than_the_data_is_cut_to_it_with_a_line_in_the_log(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        one = tf.distribute.get_strategy()
        run = driver.Run(
            network(), splits(), Classification(CLASSES), PHASES, Settings(batch_size=64), one
        )
    assert run.batch_size == 10
    assert "`batch_size` is cut from 64 to the 10 training examples." in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"checkpoint_seconds": -1.0}, "`checkpoint_seconds` must be at least 0"),
        ({"on_nan": "skp"}, "Did you mean 'skip'"),
        ({"phases": ()}, "`phases` must be one or more"),
        ({"phases": None}, "`phases` must be a list of tfbp.Phase"),
        ({"callbacks": [3]}, "`callbacks` must be Keras callbacks. Received: 3"),
        ({"seed": 2**32}, "`seed` must be at most 4294967295"),
        ({"phases": (PHASES[0], Phase("x", "body/c", epochs=1, learning_rate=1))}, "body/conv_1"),
        (
            {"phases": (PHASES[0], Phase("x", "body/norm_1", epochs=1, learning_rate=1))},
            "must match a layer that can learn",
        ),
        ({"strategy": "two"}, "`strategy` must be one of the known values"),
        ({"classes": 3}, "`model` must answer one logit for each of the 2 classes"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained_or_written(
    tmp_path, monkeypatch, settings, message
):
    monkeypatch.setattr(loop, "train", no_training)
    settings = dict(settings)
    model = network(classes=settings.pop("classes", 2))
    with pytest.raises(UserError) as caught:
        fit(model, workdir=tmp_path / "run", **settings)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_directory_that_no_path_can_name_is_refused(name):
    with pytest.raises(UserError, match="`workdir` must be a path that a directory can have"):
        fit(workdir=name)


def test_splits_and_tasks_that_are_none_are_refused():
    for task in (None, Classification, "x"):
        with pytest.raises(UserError, match="`task` must be a task, such as"):
            driver.fit(network(), splits(), task, PHASES)
    with pytest.raises(UserError, match=r"`splits` must be tfbp\.Splits"):
        driver.fit(network(), Classification(CLASSES), splits(), PHASES)


def test_a_run_stays_in_its_directory_wherever_a_callback_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    leave = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: os.chdir(tmp_path / "elsewhere")
    )
    run = fit(phases=ONE_PHASE, workdir="run", callbacks=leave)
    assert run.directory == tmp_path / "run"
    assert (tmp_path / "run" / "manifest.json").is_file()
    assert not any((tmp_path / "elsewhere").iterdir())


# ---- the proof


ONE_PHASE = (Phase("head", "head.*", epochs=1, learning_rate=0.01, optimizer="sgd"),)


def nudge(model, layer, variable):
    """Returns a callback that adds the least amount to one number of one variable."""

    def change(epoch, logs):
        target = getattr(model.get_layer("body").get_layer(layer), variable)
        value = np.array(target)
        value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
        target.assign(value)

    return keras.callbacks.LambdaCallback(on_epoch_end=change)


@pytest.mark.parametrize(
    ("layer", "variable"), [("conv_1", "kernel"), ("norm_2", "moving_variance")]
)
def test_a_frozen_layer_that_changes_by_one_bit_fails_the_proof(layer, variable):
    model = network()
    message = f"Frozen variables changed while training: body/{layer}/{variable}\\."
    with pytest.raises(ProofFailed, match=message):
        fit(model, phases=ONE_PHASE, callbacks=[nudge(model, layer, variable)])


def test_a_layer_that_should_learn_and_does_not_fails_the_proof():
    model = network()
    model.get_layer("head_1").bias.assign([-1e3] * 5)  # its ReLUs are dead: no gradient
    with pytest.raises(ProofFailed, match=r"did not change: head_1/kernel, head_1/bias\."):
        fit(model, phases=ONE_PHASE, allow=("random-frozen", "dead-layer"))


def test_a_phase_that_trains_nothing_fails_the_proof():
    model = network()
    # Set before the step is traced, as an unfreezing that came too late would be.
    freeze = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: setattr(model, "trainable", False)
    )
    message = r"did not change: head_1/kernel, head_1/bias, head/kernel, head/bias\."
    with pytest.raises(ProofFailed, match=message):
        fit(model, phases=ONE_PHASE, callbacks=[freeze])


def test_the_fingerprints_after_a_phase_are_those_before_the_next(monkeypatch):
    model = network()
    hashed = []
    of_arrays = fingerprint.of_arrays

    def note(arrays):
        found = of_arrays(arrays)
        hashed.append(len(found))
        return found

    monkeypatch.setattr(fingerprint, "of_arrays", note)
    fit(model)
    assert hashed == [len(model.weights)] * (1 + len(PHASES))


def test_a_loss_that_is_no_number_stops_the_run_by_epoch_and_step(monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    model = network()

    def spoil(batch, logs):
        if model.optimizer.iterations == STEPS + 1:
            model.get_layer("head").bias.assign([np.nan, 0])

    with pytest.raises(loop.Diverged, match="In phase 'head': The loss is nan at epoch 2, step 2"):
        fit(model, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=spoil)])


def test_a_last_update_that_spoils_the_weights_stops_the_run_though_no_loss_shows_it():
    model = network()

    def spoil(logs):
        model.get_layer("head").bias.assign([np.inf, 0])

    with pytest.raises(loop.Diverged, match=r"last update of phase 'head' .* finite: head/bias"):
        fit(model, callbacks=[keras.callbacks.LambdaCallback(on_train_end=spoil)])


def test_a_phase_whose_updates_all_overflow_in_float16_says_so():
    x = keras.Input((6, 6, 3))
    flat = keras.layers.Flatten()(x)
    head = keras.layers.Dense(2, name="head", dtype="mixed_float16", kernel_initializer="ones")
    half = keras.Model(x, head(flat))
    with pytest.raises(ProofFailed, match=r"overflowed in float16.*mixed_bfloat16"):
        fit(half, phases=[Phase("head", "head", epochs=1, learning_rate=0.1)], batch_size=10)


# ---- recipes


RECIPE = '''"""Fits a line."""
import dataclasses
import keras
import numpy as np
import tfbp

@dataclasses.dataclass(frozen=True)
class Config(tfbp.Config):
    epochs: int = tfbp.field(2, "passes", low=1)

def data(config):
    x = np.random.default_rng(0).normal(0, 1, (9, 2))
    return tfbp.Splits.from_arrays(x, x @ [[1.0], [-2.0]], validation=0, test=0.2)

def task(config, splits):
    return tfbp.Regression()

def model(config, splits):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="line")], name="line")

def phases(config):
    rate = 0.1
    return [tfbp.Phase("fit", "line", epochs=config.epochs, learning_rate=rate, optimizer="sgd")]
'''


@pytest.fixture
def exports(monkeypatch):
    """Puts a stand-in in the place of the export, whose fresh process takes seconds; returns what
    it was called with. While it holds an exception, that is raised.
    """
    calls = []

    def export(model, task, examples, folder, *, details, keep):
        if calls and isinstance(calls[-1], Exception):
            raise calls.pop()
        calls.append((str(folder), details["recipe"]))
        return pathlib.Path(folder) / "1", {"serving_default": 0.0}

    monkeypatch.setattr(versions, "export", export)
    return calls


@pytest.fixture
def line(tmp_path, monkeypatch, exports):
    """Returns the module of a recipe of linear regression, in an empty folder."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "line.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return recipe.load("line", "recipes")


def test_a_recipe_runs_into_a_numbered_directory_and_can_be_opened_again(line, exports):
    run = driver.run(line, line.Config(batch_size=3))
    directory = pathlib.Path("runs/line/1").absolute()
    assert run.directory == directory
    assert exports == [("saved_models/line", "line")]
    files = {path.name for path in directory.iterdir()}
    assert files >= {"flags.txt", "config.json", "result.json", "history.csv", "model.keras"}
    assert "checkpoints" not in files
    assert run_directory.read(directory)["recipe"] == "line"
    assert (directory / "flags.txt").read_text() == line.Config(batch_size=3).flags_text()
    result = run_directory.read(directory, "result.json")
    assert result == run.result
    assert next(iter(result)) == "recipe"
    assert result["export"] == {"path": "saved_models/line/1", "parity": {"serving_default": 0.0}}

    opened = driver.load(str(directory), "recipes")
    assert opened.evaluate(opened.splits.test) == result["metrics"]["test"]
    assert opened.history == run.history

    assert (
        driver.run(line, line.Config(batch_size=3)).directory
        == pathlib.Path("runs/line/2").absolute()
    )


def test_an_export_that_fails_leaves_a_run_that_goes_on_without_training(
    line, exports, monkeypatch
):
    exports.append(ParityError("serving_default differs"))
    with pytest.raises(ParityError):
        driver.run(line, line.Config())
    assert not run_directory.ended("runs/line/1")
    monkeypatch.setattr(loop, "train", no_training)
    run = driver.run(line, line.Config())
    assert run.directory == pathlib.Path("runs/line/1").absolute()
    assert run_directory.ended("runs/line/1")
    assert len(run.history) == 2
    # Now it is read, and asked for again by its directory.
    assert driver.run(line, line.Config(workdir="runs/line/1")).result == run.result
    assert len(exports) == 1


def test_the_directory_of_another_recipes_run_and_a_full_stop_of_exports_are_refused(line):
    pathlib.Path("file").write_text("")
    with run_directory.claim("mine", {"recipe": "mlp", "config": {}}, {}):
        pass
    with pytest.raises(UserError, match=r"differs in `recipe` \('mlp', not 'line'\)"):
        driver.run(line, line.Config(workdir="mine"))
    with pytest.raises(UserError, match="`export_dir` must be a folder that can be written"):
        driver.run(line, line.Config(export_dir="file"))
    assert not pathlib.Path("runs").exists()


def test_a_plan_says_what_would_train_and_trains_nothing(line, monkeypatch):
    monkeypatch.setattr(loop, "train", no_training)
    (planned,) = driver.plan(line, line.Config(batch_size=3, epochs=5)).phases
    assert planned.phase.name == "fit"
    (group,) = planned.groups
    assert (group.name, group.trains, group.frozen, group.rates) == ("line", 3, 0, (0.1,))
    assert planned.cost is None
    assert planned.steps == planned.updates == 5 * 3  # 7 examples in batches of 3
    assert not pathlib.Path("runs").exists()


def test_a_plan_with_the_time_takes_a_few_steps_and_writes_nothing(line):
    (planned,) = driver.plan(line, line.Config(batch_size=3, epochs=5), time=True).phases
    assert 0 < planned.cost.seconds < 60
    assert not pathlib.Path("runs").exists()


def test_settings_of_the_config_replace_those_of_the_phases_and_reach_the_training(line):
    config = line.Config(batch_size=2, epochs=3, accumulate=4, weight_decay=0.01, ema=0.5)
    run = driver.run(line, config)
    settings = {"accumulate": 4, "weight_decay": 0.01, "ema": 0.5}
    due = Phase("fit", "line", epochs=3, learning_rate=0.1, optimizer="sgd", **settings)
    assert run.phases == (due,)
    (planned,) = driver.plan(line, config).phases
    assert planned.overridden == {"accumulate": 1, "weight_decay": 0.0, "ema": None}
    assert (planned.steps, planned.updates) == (3 * 4, 3)


@pytest.mark.parametrize("precision", recipe.PRECISIONS)
def test_a_recipe_is_built_and_trained_in_the_precision_that_was_asked_for(line, precision):
    run = driver.run(line, line.Config(precision=precision))
    layer = run.model.get_layer("line")
    assert (layer.dtype_policy.name, layer.variable_dtype) == (precision, "float32")
    assert keras.config.dtype_policy().name == "float32"
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_only_the_ended_run_of_a_recipe_can_be_opened(line, recorded):
    with pytest.raises(UserError, match="must be the directory of a recipe's run"):
        driver.load(str(recorded / "end"), "recipes")
    with pytest.raises(UserError, match="must be the directory of a run"):
        driver.load("nowhere", "recipes")
    with run_directory.claim("begun", {"recipe": "line", "config": {}}, {}):
        pass
    with pytest.raises(UserError, match="that has ended"):
        driver.load("begun", "recipes")


def test_phases_of_one_name_a_negative_seed_and_what_is_no_model_are_refused():
    with pytest.raises(UserError, match="`phases` must have different names"):
        fit(phases=(PHASES[0], PHASES[0]))
    with pytest.raises(UserError, match="`seed` must be at least 0"):
        fit(seed=-1)
    with pytest.raises(UserError, match="`model` must be a Keras model"):
        fit("model")


def test_one_phase_and_one_id_need_no_list():
    run = fit(phases=PHASES[0], allow="random-frozen")
    assert [phase["name"] for phase in run.result["phases"]] == ["head"]


def test_a_split_that_is_not_there_cannot_be_evaluated():
    run = fit(phases=PHASES[0])
    with pytest.raises(UserError, match=r"`examples` must be Examples.*Received: None"):
        run.evaluate(run.splits.test)


def test_a_run_whose_data_has_changed_is_neither_gone_on_with_nor_opened(line):
    run = driver.run(line, line.Config(workdir="mine"))
    assert driver.load("mine", "recipes").result == run.result
    changed = RECIPE.replace("[[1.0], [-2.0]]", "[[1.0], [-3.0]]")
    pathlib.Path("recipes/line.py").write_text(changed)
    other = recipe.load("line", "recipes")
    with pytest.raises(UserError, match="differs in `examples`"):
        driver.run(other, other.Config(workdir="mine"))
    with pytest.raises(UserError, match="its examples have changed since"):
        driver.load("mine", "recipes")
