import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbp.data.examples import Examples, order
from tfbp.modeling import freezing
from tfbp.tasks.classification import Classification
from tfbp.tasks.regression import Regression
from tfbp.training import batches, loop, optimizer
from tfbp.training.evaluator import Evaluator
from tfbp.training.phase import Phase

ONE = tf.distribute.get_strategy()
NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(0, 1, (23, 4)).astype(np.float32)
LABELS = (X @ NUMBERS.normal(0, 1, (4, 3))).argmax(axis=1)
VALUES = (X @ NUMBERS.normal(0, 1, (4, 2)) + 1).astype(np.float32)


class Log(keras.callbacks.Callback):
    """Keeps its calls, and the weights after each of them."""

    def __init__(self):
        super().__init__()
        self.calls, self.begun, self.weights, self.logs = [], [], [], []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch", epoch))

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(batch)
        self.weights.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("end of epoch", epoch))
        self.logs.append(dict(logs))

    def on_train_end(self, logs=None):
        self.calls.append("end")


@pytest.fixture
def one_by_one(monkeypatch):
    """Makes each call of the loop one step."""
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 0)


HOOKS = "resume", "validate", "after_call"


def classifier(kind=keras.Model):
    keras.utils.set_random_seed(2)
    x = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))(x)
    return kind(x, keras.layers.Dense(3)(hidden))


def train(
    model,
    y=LABELS,
    task=None,
    *,
    x=X,
    rule="sgd",
    rate=0.1,
    batch_size=8,
    epochs=2,
    phase=None,
    log=None,
    watch=0,
    **settings,
):
    """Trains a model, and returns the log.

    Args:
        phase: further settings of the phase; `settings` are of the loop, and functions for hooks.
    """
    task = task or Classification(tuple("abc"))
    phase = Phase("fit", ".*", epochs=epochs, learning_rate=rate, optimizer=rule, **(phase or {}))
    updates = epochs * batches.updates_per_epoch(len(X), batch_size, phase.accumulate)
    update = optimizer.build(phase, updates, freezing.freeze(model, phase.trainable))
    losses = {"loss": task.loss(), "metrics": task.metrics()}
    model.compile(update, **losses, auto_scale_loss=False)
    examples, log = Examples.from_arrays(x, y), log or Log()
    loop.build(model, examples, ONE)
    hooks = loop.Hooks(keras.callbacks.CallbackList([log], model=model), watch)
    vars(hooks).update({name: settings.pop(name) for name in HOOKS if name in settings})
    log.steps = loop.train(
        model,
        examples,
        ONE,
        hooks,
        batches.Batching(batch_size, 5, phase.accumulate, settings.pop("class_weights", None)),
        epochs=epochs,
        **settings,
    )
    return log


def orders(epochs):
    return [order(tf.range(len(X)), len(X), 5, epoch).numpy() for epoch in range(epochs)]


def fit(model, y, rule, **losses):
    """Trains two epochs by Keras's own fit, in the loop's order, given by hand."""
    model.compile(rule, **losses)
    log = Log()
    for rows in orders(2):
        model.fit(X[rows], y[rows], batch_size=8, shuffle=False, verbose=0, callbacks=[log])
    return log


def assert_same_weights(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, **{"rtol": 1e-6, "atol": 1e-7} | tolerance)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("sgd", keras.optimizers.SGD(0.1)), ("adam", keras.optimizers.Adam(0.1))],
    ids=["sgd", "adam"],
)
def test_every_step_and_the_metrics_of_every_epoch_are_those_of_keras_fit(one_by_one, name, rule):
    ours = train(classifier(), rule=name)
    theirs = fit(
        classifier(),
        LABELS,
        rule,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    assert len(ours.weights) == len(theirs.weights) == 6
    assert_same_weights(ours.weights, theirs.weights)
    for one, other in zip(ours.logs, theirs.logs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
        assert set(one) == {"loss", "accuracy"}


def test_many_steps_in_one_call_end_like_single_ones(one_by_one, monkeypatch):
    singly = train(classifier(), batch_size=1)
    assert len(singly.weights) == 46
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 1e9)
    together = train(classifier(), batch_size=1)
    # 1, 2, 4, 8 steps; then no call passes the end of an epoch.
    assert [call for call in together.calls if isinstance(call, int)] == [0, 2, 6, 14, 22, 22]
    assert_same_weights([together.weights[-1]], [singly.weights[-1]], rtol=0, atol=0)
    assert together.logs == singly.logs


def test_every_step_is_the_closed_form_of_gradient_descent(one_by_one):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    weights, bias = (value.astype(np.float64) for value in model.get_weights())
    log = train(model, VALUES, Regression(), rate=0.05)
    expected = []
    for rows in orders(2):
        for start in (0, 8, 16):
            x, y = X[rows[start : start + 8]], VALUES[rows[start : start + 8]]
            slope = 2 * (x @ weights + bias - y) / y.size
            weights, bias = weights - 0.05 * x.T @ slope, bias - 0.05 * slope.sum(axis=0)
            expected.append([weights, bias])
    assert_same_weights(log.weights, expected, rtol=1e-5, atol=1e-6)


def test_a_models_own_train_step_is_used(one_by_one):
    class ByHand(keras.Model):
        """Goes against the sign of the gradient, and has a metric of its own."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.largest = keras.metrics.Mean(name="largest")

        def train_step(self, data):
            x, y, weight = data
            with tf.GradientTape() as tape:
                outputs = self(x, training=True)
                loss = self.compute_loss(x, y, outputs, weight)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.largest.update_state(tf.reduce_max(outputs))
            self.optimizer.apply([tf.sign(each) for each in gradients], self.trainable_variables)
            return self.compute_metrics(x, y, outputs, weight)

    log = train(classifier(ByHand), rate=0.125)
    assert set(log.logs[0]) == {"loss", "accuracy", "largest"}
    for before, after in zip(log.weights, log.weights[1:], strict=False):
        moves = [np.abs(b - a).ravel() for a, b in zip(before, after, strict=True)]
        np.testing.assert_allclose(np.concatenate(moves), 0.125, rtol=1e-5)


@pytest.mark.parametrize(
    ("phase", "settings"),
    [({}, {}), ({"accumulate": 2, "ema": 0.5, "clip_norm": 0.1}, {"on_nan": "skip"})],
)
def test_a_compiled_step_of_xla_gives_the_same(phase, settings):
    model = classifier()
    model.compile = functools.partial(model.compile, jit_compile=True)
    assert_same_weights(
        [train(model, rule="adam", phase=phase, **settings).weights[-1]],
        [train(classifier(), rule="adam", phase=phase).weights[-1]],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "rule", "phase"),
    [
        (4, 2, "sgd", {"clip_norm": 0.3}),
        (3, 5, "adamw", {"schedule": "cosine", "weight_decay": 0.1, "layer_decay": 0.5}),
        (5, 9, "sgd", {}),
    ],
)
def test_accumulated_batches_are_one_large_batch(one_by_one, batch_size, accumulate, rule, phase):
    points = []
    ours = train(
        classifier(),
        rule=rule,
        batch_size=batch_size,
        phase=phase | {"accumulate": accumulate},
        after_call=points.append,
    )
    theirs = train(classifier(), rule=rule, batch_size=batch_size * accumulate, phase=phase)
    assert len(ours.weights) == len(theirs.weights)  # a run goes on from whole updates alone
    assert len(points) == 2 * -(-len(X) // (batch_size * accumulate))
    assert_same_weights(ours.weights, theirs.weights, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours.logs, theirs.logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_gradients_in_float16_are_scaled_as_keras_does(one_by_one):
    def network():
        keras.utils.set_random_seed(2)
        x = keras.Input((4,))
        hidden = keras.layers.Dense(5, "tanh", dtype="mixed_float16")(x)
        model = keras.Model(x, keras.layers.Dense(3, dtype="float32")(hidden))
        model.dtype_policy = keras.dtype_policies.DTypePolicy("mixed_float16")
        return model

    large = 300 * X  # so large that the first scales overflow
    ours = train(network(), x=large, rule="adam", epochs=4)
    model, log = network(), Log()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss=loss)
    for rows in orders(4):
        model.fit(large[rows], LABELS[rows], 8, shuffle=False, verbose=0, callbacks=[log])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert_same_weights(ours.weights, log.weights, rtol=1e-4, atol=1e-5)
    start = network().get_weights()
    same = [
        all(map(np.array_equal, weights, start))  # updates that were left out
        for weights in ours.weights
    ]
    assert same[0]
    assert not same[-1]


def test_a_class_weighs_in_the_loss_as_in_keras_fit(one_by_one):
    weights = np.array([1.0, 4.0, 0.25], np.float32)
    ours = train(classifier(), rule="adam", class_weights=weights)
    model, log = classifier(), Log()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss=loss, metrics=["accuracy"])
    for rows in orders(2):
        examples = {"x": X[rows], "y": LABELS[rows], "class_weight": dict(enumerate(weights))}
        model.fit(**examples, batch_size=8, shuffle=False, verbose=0, callbacks=[log])
    assert_same_weights(ours.weights, log.weights)
    for one, other in zip(ours.logs, log.logs, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(
    ("phase", "begun", "ended"),
    [
        # 12 steps of 2 examples: steps 0, 5 and 10 of the first epoch, 3 and 8 of the second.
        ({}, [0, 1, 5, 6, 10, 11, 0, 3, 4, 8, 9], [0, 4, 5, 9, 10, 11, 2, 3, 7, 8, 11]),
        # 4 updates of 3 steps: the updates 0 and 5.
        ({"accumulate": 3}, [0, 3, 0, 3, 6], [2, 11, 2, 5, 11]),
    ],
)
def test_watched_updates_have_calls_of_their_own(monkeypatch, phase, begun, ended):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", 1e9)
    monkeypatch.setattr(loop, "_adapt", lambda limit, seconds: 100)
    log = train(classifier(), batch_size=2, phase=phase, watch=5)
    assert log.begun == begun
    assert [call for call in log.calls if isinstance(call, int)] == ended
    alone = train(classifier(), batch_size=2, phase=phase)
    assert_same_weights([log.weights[-1]], [alone.weights[-1]], rtol=0, atol=0)


def test_callbacks_are_told_what_keras_fit_tells_them_and_when_a_run_could_go_on(one_by_one):
    points, validated = [], []

    def validate():
        validated.append(len(points))
        return {"loss": 0.25}

    log = train(classifier(), validate=validate, after_call=points.append)
    epochs = [[("epoch", epoch), 0, 1, 2, ("end of epoch", epoch)] for epoch in (0, 1)]
    assert log.calls == ["begin", *epochs[0], *epochs[1], "end"]
    assert points == [1, 2, 3, 4, 5, 6]
    assert validated == [2, 5]  # before the end of an epoch is a point to go on from
    assert [logs["val_loss"] for logs in log.logs] == [0.25, 0.25]


def test_a_run_that_goes_on_enters_the_epoch_where_it_stood(one_by_one):
    log = train(classifier(), start=4)
    assert log.calls == ["begin", ("epoch", 1), 1, 2, ("end of epoch", 1), "end"]
    assert train(classifier(), start=6).calls == ["begin", "end"]


def test_a_callback_can_stop_the_training(one_by_one):
    model = classifier()
    log = train(model, epochs=9, after_call=lambda step: setattr(model, "stop_training", step == 4))
    assert log.calls[-3:] == [("epoch", 1), 0, "end"]
    assert log.steps == 4
    assert train(classifier(), start=4).steps == 6


def test_a_state_is_resumed_before_the_first_step_after_the_callbacks_beginning(one_by_one):
    def calls(start, stop=False):
        model, log = classifier(), Log()

        def resume():
            log.calls.append("resume")
            model.stop_training = stop

        train(model, log=log, start=start, resume=resume)
        return log.calls

    assert calls(0)[:4] == ["begin", "resume", ("epoch", 0), 0]
    assert calls(3)[:4] == ["begin", "resume", ("epoch", 1), 0]
    assert calls(4)[:4] == ["begin", ("epoch", 1), "resume", 1]
    assert calls(6) == ["begin", "resume", "end"]
    assert calls(4, stop=True) == ["begin", ("epoch", 1), "resume", "end"]


# ---- what is not finite

SPOILT = int(orders(1)[0][9])  # is read in the step 4 of batches of 2, amid a call of several


def spoilt_values():
    """Returns targets of which one makes the loss infinite."""
    values = VALUES.copy()
    values[SPOILT] = 1e30
    return values


def linear():
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("per_call", [0, 1e9])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_names_the_examples(
    monkeypatch, per_call, accumulate
):
    monkeypatch.setattr(loop, "SECONDS_PER_CALL", per_call)
    model, points = linear(), []
    with pytest.raises(loop.Diverged) as caught:
        train(
            model,
            spoilt_values(),
            Regression(),
            batch_size=2,
            phase={"accumulate": accumulate},
            after_call=points.append,
        )
    other = orders(1)[0][8]
    assert str(caught.value) == (
        f"The loss is inf at epoch 1, step 5, of the examples {other} (row {other}), {SPOILT} "
        f"(row {SPOILT}). If these are in order, the update before has spoiled the weights. Lower "
        "the learning rate, set `clip_norm`, or leave such updates out with `on_nan`."
    )
    # Steps after it are not made, nor is an update of which it is but one batch.
    assert model.optimizer.iterations.numpy() == (5 if accumulate == 1 else 2)
    assert max(points) <= 4


def test_of_many_examples_ten_are_named():
    message = (
        r"The loss is (inf|nan) at epoch \d+, step [12], of the examples (\d+ \(row \d+\), ){10}…\."
    )
    with pytest.raises(loop.Diverged, match=message):
        train(linear(), VALUES, Regression(), rate=1e6, epochs=50, batch_size=12)


def test_gradient_descent_that_skips_a_batch_is_the_closed_form_without_it(one_by_one, caplog):
    model, values = linear(), spoilt_values()
    weights, bias = (value.astype(np.float64) for value in model.get_weights())
    with caplog.at_level("WARNING", logger="absl"):
        log = train(model, values, Regression(), rate=0.05, on_nan="skip")
    expected, losses, warned = [], [], []
    for epoch, rows in enumerate(orders(2), start=1):
        squares = []
        for start in (0, 8, 16):
            chosen = rows[start : start + 8]
            if SPOILT in chosen:
                warned.append((epoch, start // 8 + 1, list(chosen)))
            else:
                errors = X[chosen] @ weights + bias - values[chosen]
                squares.append(np.square(errors).mean(axis=1))
                slope = 2 * errors / errors.size
                weights, bias = weights - 0.05 * X[chosen].T @ slope, bias - 0.05 * slope.sum(0)
            expected.append([weights, bias])
        losses.append(np.concatenate(squares).mean())
    assert_same_weights(log.weights, expected, rtol=1e-5, atol=1e-6)
    assert [logs["loss"] for logs in log.logs] == pytest.approx(losses, rel=1e-5)
    assert model.optimizer.skipped == 2
    assert [record.getMessage() for record in caplog.records if record.name == "absl"] == [
        f"Update left out, number {number} of at most 9: not finite at epoch {epoch}, step {step}, "
        f"of the examples {', '.join(f'{index} (row {index})' for index in chosen)}."
        for number, (epoch, step, chosen) in enumerate(warned, start=1)
    ]


class State(Log):
    """Keeps everything that a run goes on with, after each call."""

    def __init__(self):
        super().__init__()
        self.states = []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        kept = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        self.states.append([(variable.path, variable.numpy()) for variable in kept])


def restless():
    """Returns a model with statistics, a random seed and everything else that a step changes."""
    keras.utils.set_random_seed(2)
    x = keras.Input((4,))
    y = keras.layers.BatchNormalization()(keras.layers.Dense(5, "relu")(x))
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dropout(0.5)(y)))


def test_a_skipped_update_leaves_no_trace_but_its_count(monkeypatch):
    phase = {"accumulate": 2, "ema": 0.9, "schedule": "cosine", "batch_norm": "train"}
    settings = {"rule": "adam", "batch_size": 3, "phase": phase, "on_nan": "skip"}
    kept = []
    for per_call in (0, 1e9):
        monkeypatch.setattr(loop, "SECONDS_PER_CALL", per_call)
        kept.append(train(restless(), spoilt_values(), Regression(), log=State(), **settings))
    singly, together = kept
    updates = [SPOILT in rows[first : first + 6] for rows in orders(2) for first in (0, 6, 12, 18)]
    assert len(singly.states) == len(updates) == 8
    for number, spoilt in enumerate(updates[1:], start=1):
        before, after = singly.states[number - 1 : number + 1]
        changed = {
            name
            for (name, one), (_, other) in zip(before, after, strict=True)
            if not np.array_equal(one, other)
        }
        if number == 4:  # The metrics begin anew with the epoch.
            changed -= {"loss/total", "loss/count", "mae/total", "mae/count"}
        if spoilt:
            assert changed == {"update/skipped_updates"}
        else:
            assert len(changed) > 10
    assert sum(updates) == 2
    assert not updates[0]
    assert all(np.isfinite(value).all() for _, value in singly.states[-1])
    for (name, one), (_, other) in zip(singly.states[-1], together.states[-1], strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


class Root(keras.layers.Layer):
    """Is zero at zero, where its slope is not a number."""

    def call(self, x):
        return tf.sqrt(tf.abs(x))


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite(one_by_one):
    x, log = X.copy(), Log()
    x[SPOILT] = 0
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Root()(keras.layers.Dense(2, use_bias=False)(inputs)))
    train(model, VALUES, Regression(), x=x, log=log, on_nan="skip")
    assert model.optimizer.skipped == 2
    still = [np.array_equal(*pair) for pair in zip(log.weights, log.weights[1:], strict=False)]
    spoilt = [SPOILT in rows[first : first + 8] for rows in orders(2) for first in (0, 8, 16)]
    assert still == spoilt[1:]
    assert np.isfinite(log.weights[-1]).all()


def test_after_ten_skipped_updates_it_stops_and_epochs_of_them_alone_measure_nothing(caplog):
    model, log = linear(), Log()
    message = r"10 updates of the phase were not finite .* at epoch 10, step 1, of the examples \d"
    with pytest.raises(loop.Diverged, match=message):
        train(
            model,
            spoilt_values(),
            Regression(),
            batch_size=23,
            epochs=12,
            on_nan="skip",
            log=log,
        )
    assert model.optimizer.skipped == 10
    assert not model.optimizer.iterations.numpy()
    assert len(log.logs) == 9
    assert all(np.isnan(list(logs.values())).all() for logs in log.logs)
    assert_same_weights([model.get_weights()], [linear().get_weights()], rtol=0, atol=0)


def test_measuring_gives_each_example_once_in_its_own_order_without_dropout():
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dropout(0.5)(x)))
    measure = Evaluator(model, Classification(tuple("abc")), ONE)
    for batch_size in (1, 8, 23, 64):
        found = measure(Examples.from_arrays(X, LABELS), batch_size)
        np.testing.assert_array_equal(found["label"], LABELS)
        logits = X @ model.get_weights()[0] + model.get_weights()[1]
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(23), LABELS]
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["predicted"], logits.argmax(axis=1))


def test_measuring_traces_a_smaller_last_batch_and_another_batch_size_with_the_first():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    traces = []

    class Traced(Classification):
        def per_example(self, x, y, outputs):
            traces.append(x.shape)
            return super().per_example(x, y, outputs)

    measure = Evaluator(model, Traced(list("abc")), ONE)
    examples = Examples.from_arrays(X, LABELS)
    for batch_size in (8, 5, 8):
        assert len(measure(examples, batch_size)["label"]) == 23
    assert traces == [(None, 4)]
