"""A classifier under a classifier: a head that reads the probabilities of other classes."""

from collections.abc import Iterator

import keras

from tfbp.caching import calls
from tfbp.finding import Finding
from tfbp.modeling import keras_graph, paths, tops

# What hands on the answers of a classifier much as they are.
_HANDING_ON = (
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.LayerNormalization,
    keras.layers.Reshape,
)


def findings(model: keras.Model) -> Iterator[Finding]:
    """Yields `classifier-below`: a Dense layer reads a softmax, or a classifier's last layer."""
    names = {id(layer): path for path, layer in paths.layers(model)}
    for top, dense in _stacked(model):
        yield Finding(
            "classifier-below",
            f"{names.get(id(dense), dense.name)!r} reads what {names.get(id(top), top.name)!r} "
            "answers: probabilities, or logits, of other classes, which hold little of the image. "
            "Build the head on the layer before it, or the backbone with `include_top=False`.",
        )


def _stacked(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Yields each top of a classifier with the Dense layer that reads it."""
    graph = calls.calls_of(model)
    if graph is None:
        yield from _stacked_in_parts(model)
        return
    source: dict[calls.Edge, keras.layers.Layer] = {}
    for call in graph:
        read = [source[edge] for edge in call.inputs if edge in source]
        layer = call.operation
        if read and isinstance(layer, keras.layers.Dense):
            yield read[0], layer
        if isinstance(layer, keras.layers.Layer) and tops.is_top(layer):
            if len(_shape(layer)) == 2:
                source.update(dict.fromkeys(call.outputs, layer))
        elif read and isinstance(layer, _HANDING_ON):
            source.update(dict.fromkeys(call.outputs, read[0]))


def _shape(layer: keras.layers.Layer) -> tuple[int | None, ...]:
    """Returns the shape of a layer's answer; () if it is called more than once."""
    try:
        return tuple(layer.output.shape)
    except (AttributeError, ValueError):
        return ()


def _stacked_in_parts(
    model: keras.Model,
) -> Iterator[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """The same for a subclassed model, by its parts: a whole classifier, and a Dense beside it."""
    own = [layer for layer in keras_graph.sublayers(model) if isinstance(layer, keras.layers.Dense)]
    for part in keras_graph.sublayers(model):
        if isinstance(part, keras.Model) and own and (top := tops.top_of(part)) is not None:
            yield top, own[-1]
