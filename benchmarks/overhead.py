"""What tfbp's loop costs where nothing can be cached: a convolutional network, all of it trained.

    python benchmarks/overhead.py [--images=3200] [--epochs=5] [--turns=3]

tfbp and Keras's `fit` train the same network on the same images. The loops are compared by the
mean epoch after the first, which traces the graph; the whole calls, with audit, proof and tfbp's
evaluation at the end, stand beside it.
"""

import dataclasses
import functools

import keras
import numpy as np
import turns
from paced import Pace

import tfbp
from tfbp.data.examples import Examples
from tfbp.data.splits import Splits
from tfbp.settings import field
from tfbp.tasks.classification import Classification
from tfbp.training.phase import Phase

CLASSES = tuple("abcdefghij")
RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Flags(turns.Flags):
    images: int = field(3200, "of 32 × 32 × 3", low=10)
    batch_size: int = field(32, "images of a step", low=1)
    epochs: int = field(5, "of each side", low=2)
    filters: tuple[int, ...] = field((32, 64, 128), "of the convolutions", low=1)


def main() -> None:
    settings = turns.settings(Flags, __doc__)
    outcomes = measure(settings)
    print(
        f"Convolutions of {', '.join(map(str, settings.filters))} filters, {settings.images:,} "
        f"images of 32 × 32, batch {settings.batch_size}, {settings.epochs} epochs\n"
    )
    print(turns.report(outcomes, goals(outcomes)))


def measure(settings: Flags) -> turns.Outcomes:
    numbers = np.random.default_rng(0)
    x = numbers.integers(0, 256, (settings.images, 32, 32, 3), np.uint8)
    y = np.arange(settings.images) % len(CLASSES)
    sides = {
        "tfbp": lambda: _ours(settings, x, y),
        "Keras fit": lambda: _plain(settings, x.astype(np.float32), y),
    }
    return turns.by_turns(sides, settings.turns)


def goals(outcomes: turns.Outcomes) -> list[turns.Goal]:
    def ratio(name, column, **bound):
        return turns.Goal(name, turns.ratio(outcomes, "tfbp", "Keras fit", column), **bound)

    return [
        ratio("tfbp's loop / Keras fit's", "epoch, s", most=1.05),
        ratio("the whole calls", "whole call, s"),
    ]


def _network(settings: Flags) -> keras.Model:
    keras.utils.set_random_seed(0)
    images = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(images)
    for filters in settings.filters:
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(images, keras.layers.Dense(len(CLASSES), name="logits")(x))


def _ours(settings: Flags, x, y) -> turns.Outcome:
    model, pace = _network(settings), Pace()
    splits = Splits(Examples.from_arrays(x, y), classes=CLASSES)
    phase = Phase("fit", ".*", epochs=settings.epochs, learning_rate=RATE)
    task, batch_size = Classification(CLASSES), tfbp.Settings(batch_size=settings.batch_size)
    run = functools.partial(tfbp.fit, model, splits, task, phase, batch_size, callbacks=[pace])
    whole = turns.seconds(run)
    return {"epoch, s": pace.seconds, "whole call, s": whole}


def _plain(settings: Flags, x, y) -> turns.Outcome:
    model, pace, task = _network(settings), Pace(), Classification(CLASSES)
    model.compile(keras.optimizers.Adam(RATE), loss=task.loss(), metrics=task.metrics())
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs, "verbose": 0}
    whole = turns.seconds(lambda: model.fit(x, y, callbacks=[pace], **options))
    return {"epoch, s": pace.seconds, "whole call, s": whole}


if __name__ == "__main__":
    main()
