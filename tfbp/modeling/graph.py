"""A model's graph: whether two builds are of one model, and whether it can be saved.

The graph is the computation without the weights: classes, settings, shapes, connections.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator

import keras

from tfbp import fingerprint as fingerprints
from tfbp.errors import mistake
from tfbp.modeling import keras_graph

# What a configuration holds besides settings: names are compared apart, phases say what trains,
# shapes and connections are taken from the model itself.
_NO_SETTINGS = {
    "name",
    "trainable",
    "module",
    "registered_name",
    "build_config",
    "compile_config",
    "build_input_shape",
}
_CONNECTIONS = {"layers", "input_layers", "output_layers"}


def fingerprint(model: keras.Model) -> str:
    """Returns the hex SHA-256 of a model's graph.

    It depends on the classes of all layers and operations, their settings and dtypes, the shapes of
    their weights, the names that were given to them, how they are connected, and which of them are
    one layer at several places, through all nested models. It depends neither on the values of
    weights, nor on what is trainable, nor on the numbers by which Keras tells names apart in one
    process (dense_3). What a class of your own computes is not seen: of a subclassed model or layer
    count its class, its settings (where it has a `get_config` that works), and its parts.

    Args:
        model: any model. One that has not been built has no shapes.
    """
    with warnings.catch_warnings(action="ignore"):  # Keras's advice on a lambda: load it unsafely
        return fingerprints.of_json(_described(model, {}))


def check_writable(model: keras.Model) -> None:
    """Refuses a model that cannot be saved, or whose file would not load without running its code.

    Raises:
        tfbp.UserError: it has a Lambda layer, a layer with a lambda among its settings, or one of a
            class whose settings Keras cannot write. The layer is named.
    """
    for path, part in _inside(model, set()):
        if isinstance(part, keras.layers.Lambda):
            rule = (
                "must have no Lambda layers: a file with one loads only by running the code in it. "
                "Write what it does as operations (keras.ops), or as a class of your own"
            )
            raise mistake("model", rule, path)
    with warnings.catch_warnings(action="ignore"):
        _check_settings(model, "")


def _inside(operation: keras.Operation, seen: set[int], prefix: str = "") -> Iterator:
    """Yields (path, operation) of all that is inside an operation, each once."""
    for part in _parts(operation):
        if id(part) not in seen:
            seen.add(id(part))
            yield prefix + part.name, part
            yield from _inside(part, seen, f"{prefix}{part.name}/")


def _check_settings(operation: keras.Operation, path: str) -> None:
    graph = keras_graph.graph_of(operation)
    for part in graph.operations if graph else ():  # first, so that the innermost one is named
        _check_settings(part, f"{path}/{part.name}".removeprefix("/"))
    path = path or operation.name
    try:
        written = keras.saving.serialize_keras_object(operation)
        json.dumps(written)
    except Exception as error:  # A class of the user's own: whatever its `get_config` raises.
        reason = " ".join(str(error).split()).partition(" Example: ")[0].rstrip(".")
        rule = f"must be of classes that Keras can save ({reason or type(error).__name__})"
        raise mistake("model", rule, path) from error
    if _holds_lambda(written):
        rule = "must have no lambda among its layers' settings: give a function that has a name"
        raise mistake("model", rule, path)


def _holds_lambda(value: object) -> bool:
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return True
        match value.get("value"):
            case [str(), _, _]:  # An activation's: bytecode, defaults and closure, without a class.
                return True
        return any(map(_holds_lambda, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_lambda, value))


def _described(operation: keras.Operation, seen: dict[int, int]) -> dict:
    """Returns a JSON value that says what an operation computes.

    Args:
        seen: id of each operation described so far → its number.
    """
    if id(operation) in seen:
        return {"same": seen[id(operation)]}
    seen[id(operation)] = len(seen)
    kind = type(operation).__name__
    return {
        "class": kind,
        "name": _unnumbered(operation.name, kind),
        "settings": _cleared(_written(operation.get_config)),
        "weights": [
            [list(weight.shape), weight.dtype] for weight in getattr(operation, "weights", [])
        ],
        "parts": [_described(part, seen) for part in _parts(operation)],
        "connections": _connections(operation),
    }


def _parts(operation: keras.Operation) -> list[keras.Operation]:
    """Returns the operations of a model's graph in its order, then other layers inside."""
    graph = keras_graph.graph_of(operation)
    parts = list(graph.operations) if graph else []
    if isinstance(operation, keras.layers.Layer):
        parts += keras_graph.sublayers(operation)
    # A sequential model keeps its graph among its layers.
    return list({id(part): part for part in parts if part is not graph}.values())


def _connections(operation: keras.Operation) -> dict | None:
    """Returns a graph's inputs, calls and outputs, its tensors numbered in the order of calls."""
    graph = keras_graph.graph_of(operation)
    if graph is None:
        return None
    part_numbers = {id(part): number for number, part in enumerate(graph.operations)}
    numbers: dict[int, int] = {}
    calls = []

    def numbered(value: object) -> object:
        return {"tensor": numbers[id(value)]} if isinstance(value, keras.KerasTensor) else value

    for call in keras_graph.graph_calls(graph):
        given = _written(_mapped, numbered, (call.args, call.kwargs))
        calls.append([part_numbers[id(call.operation)], given])
        for tensor in call.outputs:
            numbers[id(tensor)] = len(numbers)
    ends = keras_graph.graph_ends(graph)
    return {"calls": calls} | {name: _mapped(numbered, end) for name, end in ends.items()}


def _mapped(function: Callable, structure: object) -> object:
    return keras.tree.map_structure(function, structure)


def _written(function: Callable, *arguments: object) -> object:
    """Calls a function, and returns its result as JSON; None where there is none."""
    try:
        return keras.saving.serialize_keras_object(function(*arguments))
    except Exception:  # A class of the user's own: whatever its `get_config` raises.
        return None


def _cleared(value: object, kind: str = "") -> object:
    """Leaves out of a configuration, at any depth, the entries that say nothing about the graph.

    Args:
        kind: class whose configuration `value` is; "": that of none, or of the outermost one.
    """
    if isinstance(value, list | tuple):
        return [_cleared(each) for each in value]
    if not isinstance(value, dict):
        return value
    inside = value.get("class_name", "")
    left_out = _NO_SETTINGS | (_CONNECTIONS if "input_layers" in value else set())
    cleared = {
        name: _cleared(each, inside if name == "config" else "")
        for name, each in value.items()
        if name not in left_out
    }
    if kind and isinstance(value.get("name"), str):
        cleared["name"] = _unnumbered(value["name"], kind)
    return cleared


def _unnumbered(name: str, kind: str) -> str:
    """Returns a name without the number that Keras gave it: dense_3 → dense.

    Args:
        kind: class of the thing that has the name. Names that do not end with it are a user's own.
    """
    stem = re.sub(r"_\d+(CLONE)?$", "", name)
    auto = stem.replace("_", "").endswith((kind.lower(), "kerastensor"))
    return stem if auto else name
