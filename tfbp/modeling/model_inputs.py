"""What a model takes, beside what it is given: leaf by leaf.

Keras matches inputs by name only in part: it leaves out what it does not know, and takes dicts of
other names in the order of their keys, with a warning at most.
"""

from typing import Any

import keras

from tfbp.data import structures
from tfbp.data.structures import Path
from tfbp.errors import UserError, mistake
from tfbp.modeling import keras_graph


def matched(model: keras.Model, given: Any) -> dict[Path, keras.KerasTensor]:
    """Returns the input that each leaf of a structure is given to; {} where a model does not say.

    Args:
        given: specs of what the model is called on.

    Raises:
        tfbp.UserError: names or numbers differ, or one is text and the other is none.
    """
    graph = keras_graph.graph_of(model)
    if graph is None:
        return {}
    taken = keras_graph.graph_ends(graph)["inputs"]
    by_path = structures.leaves(given)
    if isinstance(given, dict):
        inputs: dict[Path, keras.KerasTensor] = {(each.name,): each for each in graph.inputs}
        if isinstance(taken, dict):
            inputs = structures.leaves(taken)
        if inputs.keys() != by_path.keys():
            raise UserError(
                "`x` must be named like the inputs of `model`. "
                f"Received: {_listed(by_path)}. `model` takes: {_listed(inputs)}."
            )
    else:
        if len(by_path) != len(graph.inputs) or (isinstance(taken, dict) and len(by_path) > 1):
            names = [each.name for each in graph.inputs]
            rule = f"must be what `model` takes: {', '.join(names)}. Give a dict of these names"
            raise mistake("x", rule, structures.described(given))
        inputs = dict(zip(by_path, graph.inputs, strict=True))
    for path, spec in by_path.items():
        takes = keras.backend.standardize_dtype(inputs[path].dtype)
        if (spec.dtype == "string") != (takes == "string"):
            rule = f"must be {takes}, which `model` takes as {inputs[path].name!r}"
            raise mistake(structures.named("x", path), rule, spec.dtype.name)
    return inputs


def name_of(tensor: keras.KerasTensor | None) -> str:
    """Returns the name that somebody gave to a model's input; "": nobody did."""
    return "" if tensor is None or tensor.name.startswith("keras_tensor") else tensor.name


def _listed(names: dict[Path, Any]) -> str:
    return ", ".join(sorted("/".join(map(str, path)) for path in names))
