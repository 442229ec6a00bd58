"""Two devices give what one device gives, however unevenly the global batches divide."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbp
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.errors import UserError
from tfbp.modeling import freezing
from tfbp.resuming import state as run_state
from tfbp.resuming.checkpoints import Checkpoints
from tfbp.resuming.state import Position
from tfbp.tasks.classification import Classification
from tfbp.training import batches, loop, optimizer
from tfbp.training.evaluator import Evaluator
from tfbp.training.phase import Phase
from tfbp.workers import strategy

CLASSES = ("a", "b", "c")

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)


class Meeting(keras.layers.Layer):
    """Sets a variable that the replicas agree on: they wait for each other amid their steps."""

    def build(self, shape):
        self.variable = self.add_weight(shape=(), trainable=False, aggregation="mean")

    def call(self, x):
        self.variable.assign(0.0)
        return x


def examples(size, spoilt=None):
    """Returns examples; the loss of the one at `spoilt` is NaN."""
    numbers = np.random.default_rng(3)
    labels = np.arange(size) % len(CLASSES)
    x = numbers.normal(0, 1, (size, 12)) + labels[:, np.newaxis] * numbers.normal(0, 2, 12)
    if spoilt is not None:
        x[spoilt] = 3e38
    return Examples.from_arrays(x.astype(np.float32), labels)


def network():
    x = keras.Input((12,))
    y = keras.layers.Conv2D(4, 2, padding="same")(keras.layers.Reshape((2, 2, 3))(x))
    y = Meeting()(keras.layers.BatchNormalization(trainable=False)(y))
    y = keras.layers.Conv2D(6, 2, activation="tanh", kernel_regularizer="l2")(y)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(y)))


def synchronized():
    x = keras.Input((12,))
    y = keras.layers.BatchNormalization(synchronized=True)(keras.layers.Dense(6)(x))
    return keras.Model(x, keras.layers.Dense(3)(y))


class Log(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


def train(
    devices, size, batch_size, *, network=network, start=None, save=None, spoilt=None, **settings
):
    """Trains two epochs and returns the weights, the logs of the epochs and what is measured.

    Args:
        network: builds the model.
        start: the position to go on from and its state, or None.
        save: told the model and the number of steps done.
        spoilt: index of an example whose updates are skipped, or None.
    """
    where = strategy.resolve(devices)
    task = Classification(CLASSES)
    phase = Phase("fit", ".*", epochs=2, **{"learning_rate": 0.05} | settings)
    keras.utils.set_random_seed(5)
    with where.scope():
        model = network()
        updates = 2 * batches.updates_per_epoch(size, batch_size, phase.accumulate)
        update = optimizer.build(
            phase, updates, freezing.freeze(model, phase.trainable, phase.batch_norm)
        )
        model.compile(update, loss=task.loss(), metrics=task.metrics())
    data, log = examples(size, spoilt), Log()
    loop.build(model, data, where)
    if start:
        run_state.restore(model, *start, where)
    hooks = loop.Hooks(keras.callbacks.CallbackList([log], model=model))
    if save:
        vars(hooks)["after_call"] = lambda step: save(model, step)
    loop.train(
        model,
        data,
        where,
        hooks,
        batches.Batching(batch_size, seed=1, accumulate=phase.accumulate),
        epochs=2,
        start=start[0].step if start else 0,
        on_nan="stop" if spoilt is None else "skip",
    )
    assert update.skipped == (0 if spoilt is None else 2)
    update.settle()
    measured = Evaluator(model, task, where)(data, batch_size)
    return model.get_weights(), log.epochs, measured


@pytest.mark.parametrize(
    ("size", "batch_size", "settings"),
    [
        (23, 8, {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.1}),
        (21, 7, {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 0.3}),
        SLOW(17, 8, {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 0.3}),
        (3, 1, {"optimizer": "adam"}),
        SLOW(23, 4, {"accumulate": 2, "clip_variable_norm": 0.1, "ema": 0.8, "layer_decay": 0.5}),
        SLOW(7, 1, {"accumulate": 3, "clip_value": 0.01, "optimizer": "sgd", "learning_rate": 1.0}),
        SLOW(9, 1, {"accumulate": 2, "ema": 0.8, "spoilt": 2}),
    ],
    ids=[
        "uneven",
        "uneven clipped",
        "one left over clipped",
        "batches of one",
        "accumulated and averaged",
        "accumulated batches of one",
        "one update skipped",
    ],
)
def test_two_devices_give_the_weights_losses_and_metrics_of_one(size, batch_size, settings):
    assert len(tf.config.list_logical_devices("CPU")) == 2
    one, two = (train(devices, size, batch_size, **settings) for devices in ("one", "mirrored"))
    for ours, theirs in zip(one[0], two[0], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=5e-5, atol=5e-6)
    for ours, theirs in zip(one[1], two[1], strict=True):
        assert set(theirs) == {"loss", "accuracy"}
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert one[1][-1]["loss"] < one[1][0]["loss"]
    for name, values in one[2].items():
        np.testing.assert_allclose(two[2][name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [23, SLOW(17)], ids=["uneven", "one left over"])
def test_synchronized_statistics_of_an_uneven_batch_are_those_of_one_device(size):
    settings = {"network": synchronized, "batch_norm": "train", "optimizer": "sgd"}
    one, two = (train(devices, size, 8, **settings) for devices in ("one", "mirrored"))
    for ours, theirs in zip(one[0], two[0], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    assert two[1][-1] == pytest.approx(one[1][-1], rel=1e-5)


@pytest.mark.slow
def test_a_run_on_two_devices_goes_on_from_inside_an_epoch_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)
    checkpoints = Checkpoints(tmp_path, strategy=strategy.resolve("mirrored"))

    def save(model, step):
        if step <= 2:
            checkpoints.save(model, Position(step=step))

    settings = {"size": 23, "batch_size": 8, "optimizer": "adam"}
    whole = train("mirrored", **settings, save=save)
    rest = train("mirrored", **settings, start=checkpoints.newest())
    for ours, theirs in zip(rest[0], whole[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rest[1] == whole[1]


def test_it_trains_on_both_devices():
    where = strategy.resolve("mirrored")
    assert where.num_replicas_in_sync == 2
    slices = iter(batches.training(examples(6), where, batches.Batching(5), range(2)))
    sizes = [
        [part.shape[0] for part in where.experimental_local_results(next(slices)[0])]
        for _ in range(2)
    ]
    assert sizes == [[2, 3], [1, 1]]  # the second: an example, and one that stands in for none


def test_a_gradient_that_is_not_finite_on_one_device_leaves_the_update_out_on_both():
    where = strategy.resolve("mirrored")
    with where.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, dtype="mixed_float16")])
        phase = Phase("fit", ".*", epochs=1, learning_rate=1.0, optimizer="sgd")
        update = optimizer.build(phase, 4, freezing.freeze(model, ".*"))
        update.build(model.trainable_variables)
    model.set_weights([np.zeros((1, 1)), np.zeros(1)])

    @tf.function
    def step(wrong):
        def one():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where((replica == 1) & wrong, np.inf, tf.cast(replica + 1, tf.float32))
            with update.weighing(tf.constant(1.0)):
                gradient *= update.scale_loss(tf.constant(1.0))
                gradients = [tf.reshape(gradient, (1, 1)), tf.reshape(gradient, (1,))]
                update.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        where.run(one)
        update.update(where)

    for wrong, weight in ((True, 0), (False, -3), (True, -3), (False, -6)):
        step(tf.constant(wrong))
        for value in model.trainable_variables:
            for local in where.experimental_local_results(value.value):
                np.testing.assert_allclose(local.numpy(), weight)
    assert update.iterations.numpy() == 2


def test_a_model_of_another_scope_is_refused():
    outside = network()
    two = strategy.resolve("mirrored")
    with two.scope():
        inside = network()
    splits = Splits(train=examples(8), classes=CLASSES)
    phase = Phase("all", trainable=".*", epochs=1, learning_rate=0.1)
    for model, where in ((outside, two), (inside, None)):
        with pytest.raises(UserError, match="`strategy` must be the one in whose `scope"):
            tfbp.fit(model, splits, Classification(CLASSES), phase, strategy=where)
