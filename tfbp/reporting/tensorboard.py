"""TensorBoard logs: a scalar per epoch and metric, and the graph of the model."""

import os
import pathlib
from typing import Any

import keras
import tensorflow as tf

from tfbp.data import structures


class TensorBoard(keras.callbacks.Callback):
    """Writes the scalars of each epoch and, when training begins, the model's graph.

    Metrics of the training split go to the run `train`, those named `val_…` to the run
    `validation` under the same name, so that TensorBoard draws both into one chart. The step of a
    scalar is the number of the epoch, counted from 1.

    Args:
        folder: receives the folders `train` and `validation`.
        x: the `tf.TensorSpec`s of what the model takes, of one example.
    """

    def __init__(self, folder: str | os.PathLike, x: Any):
        super().__init__()
        self._x = x
        self._folder = pathlib.Path(folder)
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        with self._writer("train").as_default():
            tf.summary.graph(_forward(self.model, self._x))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            validation = name.startswith("val_")
            with self._writer("validation" if validation else "train").as_default():
                tf.summary.scalar(name.removeprefix("val_"), value, step=epoch + 1)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, split: str) -> tf.summary.SummaryWriter:
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                str(self._folder / split), flush_millis=10_000
            )
        return self._writers[split]


def _forward(model: keras.Model, x: Any) -> tf.Graph:
    """Returns the graph of the model's forward pass, in inference mode."""

    def batch(path: structures.Path, spec: tf.TensorSpec) -> tf.TensorSpec:
        return tf.TensorSpec([None, *spec.shape], spec.dtype, structures.joined(path) or "x")

    @tf.function(autograph=False)
    def forward(x: Any) -> Any:
        return model(x, training=False)

    return forward.get_concrete_function(structures.each_with_path(batch, x)).graph
