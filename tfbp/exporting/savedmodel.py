"""A model and its task, written as a SavedModel."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfbp.exporting import canonical
from tfbp.modeling import adapters, keras_graph
from tfbp.tasks.task import Signature


def write(
    model: keras.Model, signatures: Mapping[str, Signature], folder: str | os.PathLike[str]
) -> None:
    """Writes a SavedModel: variables, lookup tables of the model's layers, and the signatures.

    Each signature is a function of the loaded object too, whose parameters are the signature's
    inputs in their order: `keras.layers.TFSMLayer` calls it by position. Adapters are merged into
    the kernels that they belong to. The same model gives the same bytes, in every process.

    Args:
        model: what the signatures call.
        signatures: name → function; the first one is `serving_default` too.
        folder: receives the SavedModel. Written file by file, so name one that no server looks at.
    """
    # Without its adapters a model is another graph.
    adapted = any(map(adapters.adapted, keras_graph.all_layers(model)))
    # Keras's own ExportArchive numbers variables in the order of a set, which changes.
    root = tf.Module()
    root.saved_tables = _tables(model)
    with portable(model), adapters.merged(model):
        functions = {
            name: (dataclasses.replace(signature) if adapted else signature).traced
            for name, signature in signatures.items()
        }
        traced = {name: function.get_concrete_function() for name, function in functions.items()}
        for name, function in functions.items():
            setattr(root, name, function)
        root.saved_variables = _variables(traced.values())
        traced.setdefault("serving_default", next(iter(traced.values())))
        root.serving_default = functions.get("serving_default", next(iter(functions.values())))
        tf.saved_model.save(root, os.fspath(folder), signatures=traced)
    canonical.rewrite(pathlib.Path(folder))


def _variables(functions: Iterable[Any]) -> list[tf.Variable]:
    """Returns the variables of traced functions in the order in which those first read them.

    A function's own list of them is made from a set.
    """
    ordered: dict[int, tf.Variable] = {}
    for function in functions:
        by_handle = {id(variable.handle): variable for variable in function.graph.variables}
        for capture in function.captured_inputs:
            if id(capture) in by_handle:
                ordered.setdefault(id(capture), by_handle[id(capture)])
    return list(ordered.values())


def _tables(model: keras.Model) -> list[Any]:
    """Returns the lookup tables of a model's layers."""
    kind = tf.saved_model.experimental.TrackableResource
    return [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, kind)]


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
