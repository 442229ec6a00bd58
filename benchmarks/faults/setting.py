"""What the faults have in common: four numbers an example, a pretrained body and a new head."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import tfbp

CLASSES = ("low", "high")
EPOCHS, RATE = 3, 0.1


@dataclasses.dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        name: what is wrong.
        due: the id of the finding that is due, or "ProofFailed".
        plain: makes it with Keras alone, and returns the harm: what was measured at the end.
        ours: returns the arguments of `tfbp.fit` that make it.
    """

    name: str
    due: str
    plain: Callable[[], str]
    ours: Callable[[], dict]


def examples(count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Returns x float32 [count, 4] and labels int64 [count]: whether the sum is positive."""
    x = np.random.default_rng(count).normal(size=(count, 4)).astype("float32")
    return x, (x.sum(axis=1) > 0).astype("int64")


X, Y = examples()
SPLITS = tfbp.Splits.from_arrays(X, Y, classes=CLASSES)


def body(loaded: bool = True) -> keras.Model:
    """Returns a small backbone, with weights that stand for pretrained ones."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="tanh", name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dense(8, activation="tanh", name="second")(x)
    model = keras.Model(inputs, x, name="body")
    if loaded:
        draw = np.random.default_rng(7)
        model.set_weights([draw.uniform(0.1, 0.5, each.shape) for each in model.get_weights()])
    return model


def network(*layers: keras.layers.Layer, units: int = 2, **head: object) -> keras.Model:
    """Returns the layers, one after the other, and a dense layer "head"."""
    inputs = x = keras.Input((4,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(units, name="head", **head)(x))


def fit(model: keras.Model, x=X, y=Y, loss=None, **settings: object) -> keras.callbacks.History:
    """Trains with plain Keras."""
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss=loss, metrics=settings.pop("metrics", None))
    return model.fit(x, y, verbose=0, **({"epochs": EPOCHS} | settings))


def ours(model: keras.Model, trainable: str, splits=SPLITS, task=None, **settings) -> dict:
    """Returns the arguments of `tfbp.fit`; settings of the phase end with `_`."""
    phase = {name[:-1]: settings.pop(name) for name in list(settings) if name.endswith("_")}
    phase = {"epochs": EPOCHS, "learning_rate": RATE, "optimizer": "sgd"} | phase
    phases = [tfbp.Phase("phase", trainable, **phase)]
    task = task or tfbp.Classification(splits.classes)
    return {"model": model, "splits": splits, "task": task, "phases": phases, **settings}


class Classification(tfbp.Classification):
    """A classification with a loss of the user's own choice."""

    def __init__(self, loss: keras.losses.Loss):
        super().__init__(CLASSES)
        self._loss = loss

    def loss(self) -> keras.losses.Loss:
        return self._loss
