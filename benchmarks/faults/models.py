"""Mistakes in a model, its weights or its loss, in the order of the audit's ids."""

import keras
import numpy as np

import tfbp
from faults.setting import EPOCHS, Classification, Fault, X, Y, body, fit, network, ours


def weights_not_loaded() -> Fault:
    names = {"first": "first", "norm": "norm", "second": "zweite"}  # renamed since it was saved
    saved = {names[layer.name]: layer.get_weights() for layer in body().layers[1:]}

    def partly_loaded():
        model = body(loaded=False)
        for layer in model.layers:
            if layer.name in saved:
                layer.set_weights(saved[layer.name])
        model.trainable = False
        return model

    def plain():
        inner = partly_loaded()
        start = np.array(inner.get_layer("second").kernel.value)
        fit(network(inner))
        still = np.array_equal(start, inner.get_layer("second").kernel.value)
        return f"body/second is its random start: {still}"

    return Fault(
        "one layer's weights were not loaded",
        "weights-not-loaded",
        plain,
        lambda: ours(network(partly_loaded()), "head"),
    )


def random_frozen() -> Fault:
    def plain():
        inner = body(loaded=False)
        inner.trainable = False
        start = inner.get_weights()
        fit(network(inner))
        still = all(map(np.array_equal, start, inner.get_weights()))
        return f"the frozen body is its random start: {still}"

    return Fault(
        "nothing was loaded into the frozen body",
        "random-frozen",
        plain,
        lambda: ours(network(body(loaded=False)), "head"),
    )


def not_connected() -> Fault:
    def plain():
        inner, model = body(), network(keras.layers.Dense(8, "tanh"))
        inner.trainable = False
        fit(model)
        before = model(X).numpy()
        inner.set_weights([0 * each for each in inner.get_weights()])
        change = np.abs(model(X).numpy() - before).max()
        return f"answers change by {change:g} when the body is zeroed"

    return Fault(
        "the pretrained body is never called",
        "not-connected",
        plain,
        lambda: ours(network(keras.layers.Dense(8, "tanh")), ".*", backbone=body()),
    )


def classifier_below() -> Fault:
    def whole() -> keras.Model:
        inner = network(keras.layers.Dense(8, "tanh"), activation="softmax", units=6)
        fit(inner, y=(X[:, 0] > 0).astype("int64") * 3)
        inner.trainable = False
        return inner

    def plain():
        inner = whole()
        inner.name = "pretrained"
        model = network(inner)
        fit(model, epochs=10 * EPOCHS)
        spread = model(X).numpy().std(axis=0).max()
        return f"logits vary by {spread:.2f} over all examples"

    return Fault(
        "a head on a model that still has its softmax",
        "classifier-below",
        plain,
        lambda: ours(network(whole()), "head"),
    )


def unmoved(model: keras.Model, name: str, **settings: object) -> str:
    kernel = model.get_layer(name).kernel
    before = np.array(kernel.value)
    fit(model, **settings)
    return f"largest change of {name}: {np.abs(kernel.value - before).max():g}"


def no_gradient() -> Fault:
    def model():
        cut = keras.layers.Lambda(lambda x: keras.ops.cast(x > 0, "float32"))
        return network(keras.layers.Dense(8, name="hidden"), cut)

    return Fault(
        "a step function cuts the gradient",
        "no-gradient",
        lambda: unmoved(model(), "hidden"),
        lambda: ours(model(), ".*"),
    )


def dead_layer() -> Fault:
    def model():
        bias = keras.initializers.Constant(-100.0)
        return network(keras.layers.Dense(8, "relu", bias_initializer=bias, name="hidden"))

    return Fault(
        "all ReLUs of a layer are dead",
        "dead-layer",
        lambda: unmoved(model(), "hidden"),
        lambda: ours(model(), ".*"),
    )


def exploding() -> Fault:
    targets = 1e8 * X.sum(axis=1, keepdims=True)
    splits = tfbp.Splits.from_arrays(X, targets)

    def plain():
        model = network(keras.layers.Dense(8), units=1)
        fit(model, y=targets, loss="mse")
        finite = all(np.isfinite(each).all() for each in model.get_weights())
        return f"weights are finite numbers: {finite}"

    return Fault(
        "targets of 1e8",
        "exploding",
        plain,
        lambda: ours(network(keras.layers.Dense(8), units=1), ".*", splits, task=tfbp.Regression()),
    )


def statistics_move() -> Fault:
    def plain():
        inner = body()
        for layer in inner.layers:  # "BatchNormalization has no kernel to freeze"
            layer.trainable = isinstance(layer, keras.layers.BatchNormalization)
        mean = inner.get_layer("norm").moving_mean
        before = np.array(mean.value)
        fit(network(inner))
        return f"largest change of the frozen body's mean: {np.abs(mean.value - before).max():.2g}"

    return Fault(
        "BatchNormalization of a frozen body trains",
        "statistics-move",
        plain,
        lambda: ours(network(body()), "head|body/norm", batch_norm_="train"),
    )


def softmax_twice() -> Fault:
    def plain():
        model = network(activation="softmax")
        fit(model, epochs=10 * EPOCHS)
        return (
            f"largest answer of a second softmax: {keras.ops.max(keras.ops.softmax(model(X))):.2f}"
        )

    return Fault(
        "softmax, and a loss with from_logits=True",
        "loss-mismatch",
        plain,
        lambda: ours(network(activation="softmax"), ".*"),
    )


def logits_as_probabilities() -> Fault:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=False)

    def plain():
        model = network()
        fit(model, loss=loss)
        return f"answers sum to {model(X).numpy().sum(axis=1).min():.2g} and more, not to 1"

    return Fault(
        "logits, and a loss with from_logits=False",
        "loss-mismatch",
        plain,
        lambda: ours(network(), ".*", task=Classification(loss)),
    )


def wide_head() -> Fault:
    def plain():
        model = network(units=7)
        fit(model)
        probabilities = keras.ops.softmax(model(X)).numpy()
        return f"{probabilities[:, 2:].sum(axis=1).mean():.0%} of the probability is on no class"

    return Fault(
        "a head of 7 units for 2 classes",
        "loss-mismatch",
        plain,
        lambda: ours(network(units=7), ".*"),
    )


def labels_as_rows() -> Fault:
    def plain():
        model = network()
        fit(model, y=Y[:, np.newaxis], loss="mse", epochs=20 * EPOCHS)
        a, b = model(X).numpy().T
        return f"the two answers differ by at most {np.abs(a - b).max():.1g}"

    return Fault(
        "labels, and a loss of one-hot rows",
        "loss-mismatch",
        plain,
        lambda: ours(network(), ".*", task=Classification(keras.losses.MeanSquaredError())),
    )


class Squared(keras.losses.Loss):
    """The squared error, as anybody would write it."""

    def call(self, y_true, y_pred):
        return keras.ops.square(y_true - y_pred)


def broadcast() -> Fault:
    targets = X.sum(axis=1, keepdims=True)

    def model():
        inner = network(units=1)
        return keras.Model(inner.input, keras.layers.Reshape(())(inner.output))

    class Regression(tfbp.Regression):
        def loss(self):
            return Squared()

    def plain():
        trained = model()
        fit(trained, y=targets, loss=Squared(), epochs=20 * EPOCHS)
        spread = trained(X).numpy().std() / targets.std()
        return f"answers vary by {spread:.0%} of what the targets vary"

    return Fault(
        "answers (n,) against targets (n, 1)",
        "loss-mismatch",
        plain,
        lambda: ours(model(), ".*", tfbp.Splits.from_arrays(X, targets), Regression()),
    )


def faults() -> list[Fault]:
    return [
        weights_not_loaded(),
        random_frozen(),
        not_connected(),
        classifier_below(),
        no_gradient(),
        dead_layer(),
        exploding(),
        statistics_move(),
        softmax_twice(),
        logits_as_probabilities(),
        wide_head(),
        labels_as_rows(),
        broadcast(),
    ]
