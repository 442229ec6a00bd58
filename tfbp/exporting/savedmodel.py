"""A model and its task, written as a SavedModel."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from tfbp.modeling import adapters, keras_graph
from tfbp.tasks.task import Signature


def write(
    model: keras.Model, signatures: Mapping[str, Signature], folder: str | os.PathLike
) -> None:
    """Writes a SavedModel: variables, lookup tables of the model's layers, and the signatures.

    Adapters are merged into the kernels that they belong to.

    Args:
        model: what the signatures call.
        signatures: name → function; the first one is `serving_default` too.
        folder: receives the SavedModel. Written file by file, so name one that no server looks at.
    """
    archive = keras.export.ExportArchive()
    # Without its adapters a model is another graph.
    adapted = any(map(adapters.adapted, keras_graph.all_layers(model)))
    with portable(model), adapters.merged(model):
        # For its lookup tables. Tracked itself, its variables would be written twice.
        owner = tf.Module()
        owner.model = model
        archive.track(owner)
        for name, signature in signatures.items():
            fresh = dataclasses.replace(signature) if adapted else signature
            archive.add_endpoint(name, fresh.traced)
        archive.write_out(os.fspath(folder), verbose=False)


@contextlib.contextmanager
def portable(model: keras.Model) -> Iterator[None]:
    """Within it, recurrent layers are traced for any device, not for a GPU's cuDNN kernels."""
    layers = [layer for layer in keras_graph.all_layers(model) if hasattr(layer, "use_cudnn")]
    before = [layer.use_cudnn for layer in layers]
    for layer in layers:
        layer.use_cudnn = False
    try:
        yield
    finally:
        for layer, use_cudnn in zip(layers, before, strict=True):
            layer.use_cudnn = use_cudnn
