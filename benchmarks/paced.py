"""The pace of training itself, by a Keras callback that tfbp and Keras's `fit` tell the same."""

import time

import keras


class Pace(keras.callbacks.Callback):
    """Notes when each epoch ends. The first one holds the tracing, and is not counted."""

    def __init__(self):
        super().__init__()
        self._ends: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of an epoch, the mean over all but the first; there must be two or more."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
