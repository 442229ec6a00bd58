"""Steps a second where a step is next to nothing: a linear regression, three loops.

    python benchmarks/small_steps.py [--steps=10000] [--turns=3]

All sides fit y = wx + b by plain gradient descent on batches of the same size, for as many steps:
tfbp, Keras's `fit`, and a GradientTape loop that is not compiled. The clock runs from the call of
`fit` to its return, or around the loop: audit and tracing count.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
import turns

import tfbp
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.settings import field
from tfbp.tasks.regression import Regression
from tfbp.training.phase import Phase

RATE = 0.01
EXAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    steps: int = field(10_000, "of each side, in whole epochs", low=1)
    batch_size: int = field(10, f"of {EXAMPLES} examples", low=1, high=EXAMPLES)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    outcomes = measure(settings)
    epochs, steps = _length(settings)
    print(f"y = wx + b, {epochs * steps:,} steps of {settings.batch_size}, {steps} an epoch\n")
    print(turns.report(outcomes, goals(outcomes)))


def measure(settings: Flags) -> turns.Outcomes:
    x = np.linspace(-1, 1, EXAMPLES, dtype=np.float32)[:, np.newaxis]
    y = 3 * x + 2 + np.random.default_rng(0).normal(scale=0.1, size=x.shape).astype(np.float32)
    sides = {
        "tfbp": lambda: _ours(settings, x, y),
        "Keras fit": lambda: _plain(settings, x, y),
        "eager tape": lambda: _tape(settings, x, y),
    }
    return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes) -> list[turns.Goal]:
    def faster(than, least):
        ratio = turns.ratio(outcomes, "tfbp", than, "steps a second")
        return turns.Goal(f"tfbp / {than}", ratio, least=least)

    return [faster("Keras fit", 5), faster("eager tape", 10)]


def _length(settings: Flags) -> tuple[int, int]:
    """Returns epochs, and the steps of each."""
    steps = -(-EXAMPLES // settings.batch_size)
    return -(-settings.steps // steps), steps


def _line() -> keras.Model:
    x = keras.Input([1])
    return keras.Model(x, keras.layers.Dense(1, kernel_initializer="zeros", name="line")(x))


def _outcome(settings: Flags, seconds: float, model: keras.Model) -> turns.Outcome:
    epochs, steps = _length(settings)
    slope = float(model.get_layer("line").kernel[0, 0])
    return {"steps a second": epochs * steps / seconds, "seconds": seconds, "w at the end": slope}


def _ours(settings: Flags, x, y) -> turns.Outcome:
    model, splits = _line(), Splits(Examples.from_arrays(x, y))
    epochs, _ = _length(settings)
    phase = Phase("fit", ".*", epochs=epochs, learning_rate=RATE, optimizer="sgd")
    size = settings.batch_size
    fit = lambda: tfbp.fit(model, splits, Regression(), phase, tfbp.Settings(batch_size=size))  # noqa: E731
    return _outcome(settings, turns.seconds(fit), model)


def _plain(settings: Flags, x, y) -> turns.Outcome:
    model, task = _line(), Regression()
    epochs, _ = _length(settings)
    model.compile(keras.optimizers.SGD(RATE), loss=task.loss(), metrics=task.metrics())
    options = {"batch_size": settings.batch_size, "epochs": epochs, "verbose": 0}
    return _outcome(settings, turns.seconds(lambda: model.fit(x, y, **options)), model)


def _tape(settings: Flags, x, y) -> turns.Outcome:
    model, optimizer, loss = _line(), keras.optimizers.SGD(RATE), Regression().loss()
    epochs, steps = _length(settings)
    numbers = np.random.default_rng(0)

    def train():
        for _ in range(epochs):
            for rows in np.array_split(numbers.permutation(EXAMPLES), steps):
                with tf.GradientTape() as tape:
                    value = loss(y[rows], model(x[rows], training=True))
                gradients = tape.gradient(value, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return _outcome(settings, turns.seconds(train), model)


if __name__ == "__main__":
    main()
