"""Mistakes while training, which no look at the model beforehand can find."""

import keras
import numpy as np

from faults.setting import Fault, X, Y, body, fit, network, ours


class Nudge(keras.callbacks.Callback):
    """Changes a frozen variable a little after the first batch, as a bug elsewhere might."""

    def __init__(self, layer: str, variable: str):
        super().__init__()
        self._layer, self._variable = layer, variable

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            variable = getattr(self.model.get_layer("body").get_layer(self._layer), self._variable)
            variable.assign(variable + 1e-4)


def nudged(name: str, layer: str, variable: str) -> Fault:
    def plain():
        inner = body()
        inner.trainable = False
        target = getattr(inner.get_layer(layer), variable)
        before = np.array(target.value)
        fit(network(inner), callbacks=[Nudge(layer, variable)])
        return f"it moved by {np.abs(target.value - before).max():.1g}"

    return Fault(
        name,
        "ProofFailed",
        plain,
        lambda: ours(network(body()), "head", callbacks=[Nudge(layer, variable)]),
    )


def nothing_trains() -> Fault:
    def plain():
        inner = body()
        inner.trainable = False
        model = network(inner)
        fit(model)
        inner.trainable = True  # and not compiled again
        before = inner.get_weights()
        model.fit(X, Y, verbose=0)
        still = all(map(np.array_equal, before, inner.get_weights()))
        return f"the body that was unfrozen is unchanged: {still}"

    def freezing():
        model = network(body())
        late = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: setattr(model, "trainable", False)
        )
        return ours(model, ".*", callbacks=[late])

    return Fault("a phase trains nothing", "ProofFailed", plain, freezing)


def faults() -> list[Fault]:
    return [
        nudged("a callback moves a frozen kernel", "first", "kernel"),
        nudged("a callback moves frozen statistics", "norm", "moving_mean"),
        nothing_trains(),
    ]
