"""Norms of a run's gradients and updates, held against plain Keras and the update rule itself."""

import csv
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfbp
from tfbp import driver
from tfbp.data.augmentation import augmentation
from tfbp.data.examples import Examples, order
from tfbp.data.splits import Splits
from tfbp.tasks.classification import Classification
from tfbp.tasks.regression import Regression
from tfbp.training.phase import Phase
from tfbp.workers import strategy

NUMBERS = np.random.default_rng(0)
STEPS = 8  # of an epoch: 15 images in batches of 2


def images():
    """Returns 15 images to train on, augmented, and 4 to validate on."""
    x = NUMBERS.integers(0, 255, (19, 6, 6, 1)).astype(np.uint8)
    y = np.arange(19) % 3
    train = Examples.from_arrays(x[:15], y[:15]).augmented(augmentation(flip=True))
    return Splits(train, Examples.from_arrays(x[15:], y[15:]), classes=("a", "b", "c"))


IMAGES = images()


def network(devices="one", recurrent=False):
    """Returns a network with statistics that move, dropout and a nested model."""
    keras.utils.set_random_seed(1)
    with strategy.resolve(devices).scope():
        x = inner = keras.Input((6, 6, 1))
        inner = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Rescaling(1 / 255)(inner))
        inner = keras.layers.BatchNormalization(name="norm")(inner)
        if recurrent:
            inner = keras.layers.Reshape((16, 4))(inner)
            inner = keras.layers.SimpleRNN(4, dropout=0.2, recurrent_dropout=0.2, name="rnn")(inner)
        else:
            inner = keras.layers.GlobalAveragePooling2D()(inner)
        body = keras.Model(x, inner, name="body")
        images = keras.Input((6, 6, 1))
        y = keras.layers.Dropout(0.5)(body(images))
        y = keras.layers.Dense(3, kernel_regularizer="l2", name="head")(y)
        return keras.Model(images, y)


def fit(model=None, *, devices="one", optimizer="sgd", accumulate=1, epochs=2, **settings):
    phase = Phase(
        "all",
        ".*",
        epochs=epochs,
        learning_rate=0.05,
        optimizer=optimizer,
        accumulate=accumulate,
        batch_norm="train",
    )
    task = Classification(IMAGES.classes)
    model = model or network(devices)
    settings = {"batch_size": 2, "seed": 3, "strategy": devices} | settings
    callbacks = settings.pop("callbacks", ())
    return driver.fit(model, IMAGES, task, [phase], tfbp.Settings(**settings), callbacks=callbacks)


def of(row, name):
    return {
        column.partition("/")[2]: value for column, value in row.items() if column.startswith(name)
    }


def scalars(folder):
    """Returns tag → {step: value} of a TensorBoard run."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: {each.step: float(tf.make_ndarray(each.tensor_proto)) for each in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }


@pytest.mark.slow
def test_training_ends_the_same_bit_for_bit_with_and_without():
    logged, plain = (
        fit(network(recurrent=True), optimizer="adam", accumulate=2, gradients=number)
        for number in (3, 0)
    )
    assert "input_gradient_norm/body/rnn/16" in logged.history[-1]
    for ours, theirs in zip(logged.model.variables, plain.model.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert logged.result["metrics"] == plain.result["metrics"]
    for ours, theirs in zip(logged.history, plain.history, strict=True):
        assert {name: ours[name] for name in theirs if name != "seconds"} == {
            name: value for name, value in theirs.items() if name != "seconds"
        }
        assert len(ours) > len(theirs)


@pytest.mark.parametrize(("devices", "accumulate"), [("one", 1), ("mirrored", 3)])
def test_an_update_of_sgd_is_the_rate_times_the_gradient_of_the_very_same_step(
    tmp_path, devices, accumulate
):
    run = fit(devices=devices, accumulate=accumulate, gradients=1, workdir=tmp_path)
    found = scalars(tmp_path / "tensorboard" / "all" / "gradients")
    updates = 2 * -(-STEPS // accumulate)
    for path in ("body/conv", "body/norm", "head"):
        gradient, update = found[f"gradient_norm/{path}"], found[f"update_norm/{path}"]
        assert list(gradient) == list(update) == list(range(updates))
        # Of the same augmented examples, with the same dropout; the last update has fewer of them.
        np.testing.assert_allclose(
            list(update.values()), 0.05 * np.array(list(gradient.values())), rtol=1e-4, atol=1e-6
        )
        assert run.history[-1][f"gradient_norm/{path}"] == pytest.approx(gradient[updates - 1])
        assert run.history[0][f"update_norm/{path}"] == pytest.approx(update[updates // 2 - 1])
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gradient_norm/head"]) for row in rows] == [
        row["gradient_norm/head"] for row in run.history
    ]


def test_the_norms_are_those_of_a_tape_in_plain_keras():
    keras.utils.set_random_seed(2)
    x = keras.Input((4,))
    y = keras.layers.Dense(5, "tanh", name="below")(x)
    model = keras.Model(x, keras.layers.Dense(2, name="above")(y))
    x, y = NUMBERS.normal(0, 1, (6, 4)).astype(np.float32), NUMBERS.normal(0, 1, (6, 2))
    splits = Splits(Examples.from_arrays(x, y))
    rows = order(tf.range(6), 6, 0, 0).numpy()[:4]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x[rows]) - y[rows].astype(np.float32)))
    kernel, bias = tape.gradient(loss, model.get_layer("below").trainable_variables)
    expected = np.sqrt(np.square(kernel).sum() + np.square(bias).sum())

    phase = Phase("below", "below", epochs=1, learning_rate=0.1, clip_norm=1e-3)
    settings = tfbp.Settings(batch_size=4, gradients=9, allow=("random-frozen",))
    run = driver.fit(model, splits, Regression(), [phase], settings)
    (row,) = run.history
    assert of(row, "gradient_norm").keys() == {"below"}  # what is frozen has none
    assert row["gradient_norm/below"] == pytest.approx(expected, rel=1e-5)  # before clipping


def test_an_epoch_without_such_an_update_has_no_norms():
    run = fit(gradients=STEPS * 2, epochs=3)
    assert ["gradient_norm/head" in row for row in run.history] == [True, False, True]


# ---- recurrent models


def recurrence(factor):
    """Fits a linear recurrence that multiplies by `factor` with each step; returns the run."""
    x = keras.Input((6, 2))
    layer = keras.layers.SimpleRNN(2, activation=None, name="rnn")
    model = keras.Model(x, layer(x))
    layer.set_weights([np.eye(2), factor * np.eye(2), np.zeros(2)])
    x, y = NUMBERS.normal(0, 1, (4, 6, 2)).astype(np.float32), NUMBERS.normal(0, 1, (4, 2))
    phase = Phase("fit", ".*", epochs=2, learning_rate=1e-12, optimizer="sgd")
    splits = Splits(Examples.from_arrays(x, y))
    return driver.fit(
        model,
        splits,
        Regression(),
        [phase],
        tfbp.Settings(batch_size=4, gradients=1, allow=("exploding",)),
    )


@pytest.mark.parametrize(("factor", "said"), [(0.1, "vanishes"), (0.5, None), (6.0, "explodes")])
def test_gradients_by_time_step_are_logged_and_named_once_where_they_vanish_or_explode(
    caplog, factor, said
):
    with caplog.at_level(logging.WARNING, logger="absl"):
        row = recurrence(factor).history[-1]
    norms = [row[f"input_gradient_norm/rnn/{t}"] for t in range(1, 7)]
    np.testing.assert_allclose(np.divide(norms[:-1], norms[1:]), factor, rtol=1e-3)
    by_time = [record.message for record in caplog.records if "∂L_T/∂x_t" in record.message]
    if said:
        (message,) = by_time
        assert said in message and "'rnn'" in message and "Phase fit, update 0" in message
    else:
        assert not by_time


@pytest.mark.parametrize(
    ("scale", "said"),
    [(1e-5, "vanishes from the last layer to the first: above"), (1e5, "explodes: below")],
)
def test_layers_whose_gradients_vanish_or_explode_are_named_once(caplog, scale, said):
    x = keras.Input((3,))
    y = keras.layers.Dense(3, name="below")(x)
    model = keras.Model(x, keras.layers.Dense(2, name="above")(y))
    kernel = model.get_layer("above").kernel
    kernel.assign(scale * np.ones(kernel.shape))
    x, y = NUMBERS.normal(0, 1, (8, 3)).astype(np.float32), NUMBERS.normal(5, 1, (8, 2))
    phase = Phase("fit", ".*", epochs=2, learning_rate=1e-9, optimizer="sgd")
    splits = Splits(Examples.from_arrays(x, y))
    with caplog.at_level(logging.WARNING, logger="absl"):
        driver.fit(
            model,
            splits,
            Regression(),
            [phase],
            tfbp.Settings(
                batch_size=4, gradients=1, allow=("exploding", "dead-layer", "no-gradient")
            ),
        )
    messages = [record.message for record in caplog.records if "gradient" in record.message]
    assert len([message for message in messages if said in message]) == 1


def test_of_a_long_sequence_64_steps_are_logged_first_and_last_among_them():
    x = keras.Input((90, 1))
    model = keras.Model(x, keras.layers.SimpleRNN(1, name="rnn")(x))
    splits = Splits(Examples.from_arrays(np.ones((2, 90, 1)), np.ones((2, 1))))
    phase = Phase("fit", ".*", epochs=1, learning_rate=0.1)
    (row,) = driver.fit(model, splits, Regression(), [phase], tfbp.Settings(gradients=1)).history
    steps = [int(name.partition("/")[2]) for name in of(row, "input_gradient_norm")]
    assert len(steps) == 64 and (steps[0], steps[-1]) == (1, 90)
