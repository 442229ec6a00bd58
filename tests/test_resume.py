"""Runs that are killed and go on end as those that were not, bit for bit: two hard cases."""

import contextlib
import itertools
import shutil

import keras
import numpy as np
import pytest

import tfbp
from tfbp import driver
from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.resuming import checkpoints as run_checkpoints
from tfbp.tasks.classification import Classification
from tfbp.training import loop
from tfbp.training.phase import Phase
from tfbp.workers import interruption

CLASSES = ("a", "b")
STEPS = 5  # of an epoch: 10 examples in batches of 2


@keras.saving.register_keras_serializable("test_resume")
class Noise(keras.layers.Layer):
    """Draws from Keras's own generator, learns a gain, and holds a mask of infinities."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(), initializer="ones")
        self.mask = self.add_weight(
            name="mask",
            shape=(1,),
            trainable=False,
            initializer=keras.initializers.Constant(-np.inf),
        )

    def call(self, x, training=False):
        x = keras.ops.maximum(self.gain * x, self.mask)
        return x + 0.1 * keras.random.normal(keras.ops.shape(x)) if training else x


class Shake(keras.callbacks.Callback):
    """Acts on each batch, by a count of its own."""

    batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        bias = self.model.get_layer("head").bias
        bias.assign(bias + 0.01 * np.sin(self.batches))

    def get_state(self):
        return self.batches

    def set_state(self, state):
        self.batches = state


def network():
    keras.utils.set_random_seed(4)
    x = keras.Input((6, 6, 3))
    y = keras.layers.Conv2D(4, 3, activation="relu", name="body")(x / 255)
    y = keras.layers.BatchNormalization(name="norm")(y)
    y = keras.layers.Dropout(0.3)(Noise(name="noise")(keras.layers.Flatten()(y)))
    return keras.Model(x, keras.layers.Dense(2, name="head")(y))


def splits():
    numbers = np.random.default_rng(1)
    x = numbers.integers(0, 255, (18, 6, 6, 3), dtype=np.uint8)
    y = numbers.integers(0, 2, 18)
    train = Examples.from_arrays(x[:10], y[:10]).augmented(augmentation(flip=True, colour=0.1))
    return Splits(train, Examples.from_arrays(x[10:], y[10:]), classes=CLASSES)


def shake(directory):
    return [Shake()]


EVERYTHING = {
    "phases": (
        Phase(
            "fit",
            "body|norm|noise|head",
            epochs=6,
            learning_rate=0.1,
            accumulate=2,
            ema=0.6,
            early_stopping=2,
            batch_norm="train",
            schedule="cosine",
        ),
        Phase("tune", "head", epochs=2, learning_rate=0.01, optimizer="rmsprop"),
    ),
    "gradients": 2,
    "callbacks": shake,
}


def keras_callbacks(directory):
    """Returns callbacks that change the training, and a log that must not lose or repeat a row."""
    return [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=10.0),
        keras.callbacks.EarlyStopping(
            monitor="loss", patience=2, min_delta=10.0, restore_best_weights=True
        ),
        keras.callbacks.CSVLogger(directory / "log.csv", append=True),
    ]


WITH_CALLBACKS = {
    "phases": (
        Phase("fit", "body|head", epochs=6, learning_rate=0.1),
        Phase("tune", "head", epochs=2, learning_rate=0.01, optimizer="sgd"),
    ),
    "gradients": 0,
    "callbacks": keras_callbacks,
}


def fit(directory, case):
    """Runs a case; returns the run, and the bits of model, optimizer and metrics at the end of each
    phase.
    """
    model, ended = network(), []

    def keep(logs):
        every = (*model.variables, *model.optimizer.variables, *model.metrics_variables)
        ended.append([variable.value.numpy().tobytes() for variable in every])

    run = driver.fit(
        model,
        splits(),
        Classification(CLASSES),
        case["phases"],
        tfbp.Settings(
            workdir=directory,
            batch_size=2,
            gradients=case["gradients"],
            allow=("imbalance", "class-missing", "random-frozen"),
        ),
        callbacks=[
            *case["callbacks"](directory),
            keras.callbacks.LambdaCallback(on_train_end=keep),
        ],
    )
    return run, ended


def record(folder, case):
    """Runs a case whole, and copies its directory after each checkpoint, one for each update."""
    save = run_checkpoints.Checkpoints.save

    def save_and_copy(self, model, place, **more):
        save(self, model, place, **more)
        self.wait()
        stopped = " stopped" if place.stopped else ""
        shutil.copytree(folder / "end", folder / f"{place.phase} {place.step}{stopped}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SECONDS_PER_CALL", 0)
        patch.setattr(run_checkpoints.Checkpoints, "due", lambda self: True)
        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_copy)
        return folder, case, *fit(folder / "end", case)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return record(tmp_path_factory.mktemp("everything"), EVERYTHING)


@pytest.fixture(scope="module")
def with_callbacks(tmp_path_factory):
    return record(tmp_path_factory.mktemp("callbacks"), WITH_CALLBACKS)


def without_seconds(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def assert_goes_on_to_the_same_end(recorded, place, directory):
    shutil.copytree(recorded[0] / place, directory)
    assert_ends_the_same(recorded, directory)


def assert_ends_the_same(recorded, directory):
    folder, case, whole, ended = recorded
    if (directory / "log.csv").exists():  # rows of which the checkpoint does not know
        with open(directory / "log.csv", "a") as file:
            file.write("5,1,2,3\n")
    run, again = fit(directory, case)
    assert 1 <= len(again) <= len(ended)
    assert again == ended[-len(again) :]
    for ours, theirs in zip(run.model.variables, whole.model.variables, strict=True):
        assert ours.value.numpy().tobytes() == theirs.value.numpy().tobytes()
    assert without_seconds(run.history) == without_seconds(whole.history)
    for key in ("metrics", "data"):
        assert run.result[key] == whole.result[key]
    phases = zip(run.result["phases"], whole.result["phases"], strict=True)
    for ours, theirs in phases:
        assert without_seconds([ours]) == without_seconds([theirs])
    if (directory / "log.csv").exists():
        assert (directory / "log.csv").read_bytes() == (folder / "end" / "log.csv").read_bytes()


@pytest.mark.parametrize("place", ["0 2", f"0 {STEPS + 4}", "1 0", f"1 {STEPS + 3}"])
def test_dropout_augmentation_accumulation_averages_and_early_stopping(everything, tmp_path, place):
    _, _, whole, _ = everything
    first = whole.result["phases"][0]
    assert first["stopped_epoch"] == first["epochs"] < 6
    assert_goes_on_to_the_same_end(everything, place, tmp_path / "run")


@pytest.mark.parametrize(
    "place", [f"0 {2 * STEPS}", f"0 {3 * STEPS} stopped", "1 0", f"1 {STEPS + 2}"]
)
def test_callbacks_of_keras_that_change_the_rate_and_stop_the_phase(
    with_callbacks, tmp_path, place
):
    folder, _, whole, _ = with_callbacks
    # No loss falls by ten: the third epoch ends the phase, with the weights of the first.
    assert whole.result["phases"][0]["epochs"] == 3
    assert len((folder / "end" / "log.csv").read_text().splitlines()) == 1 + 3 + 2
    assert_goes_on_to_the_same_end(with_callbacks, place, tmp_path / "run")


def test_the_rate_is_what_the_callbacks_have_made_of_it(with_callbacks):
    folder, _, _, _ = with_callbacks
    table = np.genfromtxt(folder / "end" / "log.csv", delimiter=",", names=True)
    # One lowers it at each epoch's beginning, the other behind the log of the second and third.
    expected = [0.1 * 0.9, 0.1 * 0.9 * 0.9, 0.1 * 0.9 * 0.9 * 0.5 * 0.9]
    np.testing.assert_allclose(table["learning_rate"][:3], expected, rtol=1e-6)


def asked_at(call):
    """Returns what stands for `interruption.deferred` where a signal comes before that question."""

    @contextlib.contextmanager
    def deferred():
        calls = itertools.count(1)
        yield lambda: next(calls) >= call

    return deferred


@pytest.mark.parametrize(
    ("call", "place"), [(3, (0, 3)), (3 * STEPS + 1, (1, 0))], ids=["inside", "between phases"]
)
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_where_it_stands(
    with_callbacks, tmp_path, call, place
):
    _, case, _, _ = with_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SECONDS_PER_CALL", 0)
        patch.setattr(interruption, "deferred", asked_at(call))
        with pytest.raises(interruption.Interrupted):
            fit(tmp_path, case)
    found, _ = run_checkpoints.Checkpoints(tmp_path / "checkpoints").newest()
    assert (found.phase, found.step) == place
    if found.step:
        assert_ends_the_same(with_callbacks, tmp_path)


def test_a_run_does_not_go_on_with_other_callbacks(with_callbacks, tmp_path):
    folder, case, _, _ = with_callbacks
    shutil.copytree(folder / "0 3", tmp_path / "run")
    with pytest.raises(UserError, match="`callbacks` must be those that the run began with"):
        fit(tmp_path / "run", case | {"callbacks": shake})
