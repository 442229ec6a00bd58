"""A backbone that does not reach the output: loaded, frozen and never called."""

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from tfbp.data import structures
from tfbp.data.splits import Splits
from tfbp.finding import Finding
from tfbp.modeling import keras_graph


def findings(
    model: keras.Model, splits: Splits, backbones: Sequence[keras.Model]
) -> Iterator[Finding]:
    """Yields `not-connected`.

    Args:
        backbones: models that are meant to be part of `model`. Those that a subclassed model holds
            are looked at too; a functional one holds nothing that does not reach its output.
    """
    looked_at = list(backbones)
    if not hasattr(model, "outputs"):
        looked_at += [each for each in keras_graph.nested_models(model) if each.weights]
    looked_at = list({id(each): each for each in looked_at}.values())
    reaching = _reaching(model, splits) if looked_at else set()
    for backbone in looked_at:
        if not any(handle in reaching for v in backbone.weights for handle in _handles(v)):
            yield Finding(
                "not-connected",
                f"the output of {model.name!r} does not depend on {backbone.name!r}: it is never "
                "called, or what it answers is not used. Build the model on its output.",
            )


def _reaching(model: keras.Model, splits: Splits) -> set[int]:
    """Returns the ids of the variables' handles that the model's output depends on."""
    call = tf.function(lambda x: model(x, training=False), autograph=False)
    graph = call.get_concrete_function(structures.batched(splits.train.spec[0])).graph
    inside = {id(inner): id(outer) for outer, inner in graph.captures}
    left, seen, handles = list(graph.outputs), set(), set()
    while left:
        tensor = left.pop()
        if id(tensor) in inside:
            handles.add(inside[id(tensor)])
        if id(tensor.op) not in seen:
            seen.add(id(tensor.op))
            left += tensor.op.inputs
    return handles


def _handles(variable: keras.Variable) -> list[int]:
    value = variable.value
    return [id(part.handle) for part in getattr(value, "values", [value])]
