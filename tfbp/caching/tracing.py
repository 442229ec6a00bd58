"""What a model's calls do, read from the TensorFlow graph that they make.

Whoever wrote a layer, its graph says whether it draws, writes, or reads what may change: no layer
has to be known by its class.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import op_def_registry  # knows which operations keep state

from tfbp import fingerprint
from tfbp.caching.calls import Call, Calls, Edge
from tfbp.modeling import keras_graph

# Operations that TensorFlow counts as keeping state though they only look at it.
_LOOKING = {"Placeholder", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"}


@dataclasses.dataclass(frozen=True)
class Trace:
    """A model's calls in training mode, on a batch of any size. Nothing has been computed.

    Attributes:
        steady: the calls that answer alike whenever they are given the same, in training and in
            inference mode, and change nothing.
        tensors: symbolic, by edge.
    """

    steady: frozenset[Call]
    tensors: dict[Edge, tf.Tensor]
    _inputs: list[tf.Tensor]
    _operations: dict[Call, list[tf.Operation]]
    _graph: tf.Graph
    _fixed: dict[int, keras.Variable]

    def fingerprints(self, calls: Iterable[Call]) -> dict[Edge, str]:
        """Returns the hex SHA-256 of how each output of steady calls is computed.

        It depends on which inputs of the model they come from; on each operation in between, its
        attributes (constants, dtypes, shapes) and connections; and on the values of the variables
        that are read. It depends neither on names nor on what else is computed.

        Args:
            calls: in order; with a call, those whose outputs it reads.
        """
        known = {
            tensor.name: fingerprint.of_json([number, tensor.dtype.name, str(tensor.shape)])
            for number, tensor in enumerate(self._inputs)
        }
        captured = _captured(self._graph)

        def outside(name: str) -> str:
            if name not in known:
                value = captured[name]
                value = tf.convert_to_tensor(self._fixed.get(id(value), value))  # not a copy
                known[name] = fingerprint.of_array(value)
            return known[name]

        fingerprints: dict[Edge, str] = {}
        for call in calls:
            rows, position = _described(self._operations[call], outside)
            for tensor in _symbolic(self.tensors[edge] for edge in call.outputs):
                if tensor.name not in known:
                    computation = rows, position(tensor.name)
                    known[tensor.name] = fingerprint.of_bytes(repr(computation).encode())
            fingerprints |= {edge: known[self.tensors[edge].name] for edge in call.outputs}
        return fingerprints


def trace(calls: Calls, fixed: Sequence[keras.Variable]) -> Trace:
    """Traces all of a model's calls.

    Args:
        fixed: the variables whose values do not change; a call that reads another is not steady.
    """
    handles = {id(handle): variable for variable in fixed for handle in _handles(variable)}
    graph = tf.__internal__.FuncGraph("calls")
    operations: dict[Call, list[tf.Operation]] = {}
    steady: set[Call] = set()
    with graph.as_default():
        given = keras.tree.map_structure(
            lambda each: tf.compat.v1.placeholder(each.dtype, each.shape), calls.inputs
        )
        tensors = {calls.given: given}
        for call in calls:
            made, acts = _traced(graph, call, tensors, training=True)
            operations[call] = made
            if acts or _acts(made, graph) or _looks_elsewhere(graph, call, made, tensors, handles):
                continue
            if _takes_training(call.operation):
                again, acts = _traced(graph, call, dict(tensors), training=False)
                if acts or _described(made)[0] != _described(again)[0]:
                    continue
            outputs = [tensors[edge] for edge in call.outputs]
            if all(_symbolic([tensor]) for tensor in outputs):  # no sparse ones, no constants
                steady.add(call)
    inputs = keras.tree.flatten(given)
    return Trace(frozenset(steady), tensors, inputs, operations, graph, handles)


def _traced(
    graph: tf.Graph, call: Call, tensors: dict[Edge, tf.Tensor], training: bool
) -> tuple[list[tf.Operation], bool]:
    """Returns the operations that a call adds; whether it sets Keras's variables or adds losses.

    It does neither: the scope catches both.
    """
    before = len(graph.get_operations())
    with keras.StatelessScope(collect_losses=True) as scope:
        call.run(tensors, training)
    return graph.get_operations()[before:], bool(scope.state_mapping or scope.losses)


def _takes_training(operation: Callable[..., Any]) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return False
    layers = keras_graph.all_layers(operation)
    return any("training" in layer.call_signature_parameters for layer in layers)


def _handles(variable: keras.Variable) -> list[tf.Tensor]:
    """Returns what stands for a variable in a graph: one on each device that has a copy."""
    value = variable.value
    return [each.handle for each in getattr(value, "values", [value])]


def _captured(graph: tf.Graph) -> dict[str, tf.Tensor]:
    """Returns the tensors that a graph has taken from outside, by their names inside."""
    return {inside.name: outside for outside, inside in graph.captures}


def _symbolic(values: Iterable[Any]) -> list[tf.Tensor]:
    """Returns those of a structure's values that are a graph's tensors, and their masks."""
    tensors = keras.tree.flatten(list(values))
    return [
        each
        for each in (*tensors, *map(keras_graph.mask_of, tensors))
        if isinstance(each, tf.Tensor) and tf.is_symbolic_tensor(each)
    ]


def _looks_elsewhere(
    graph: tf.Graph,
    call: Call,
    operations: Sequence[tf.Operation],
    tensors: Mapping[Edge, tf.Tensor],
    handles: Mapping[int, keras.Variable],
) -> bool:
    """Tells whether a call's operations take anything but its inputs, constants and variables that
    stay: a variable that may change, a table, a tensor that another call has left somewhere.
    """
    near = {tensor.name for operation in operations for tensor in operation.outputs}
    near |= {tensor.name for tensor in _symbolic(tensors[edge] for edge in call.inputs)}
    captured = _captured(graph)
    for tensor in (each for operation in operations for each in operation.inputs):
        if tensor.name in captured:
            stateful = tensor.dtype in (tf.resource, tf.variant)
            if stateful and id(captured[tensor.name]) not in handles:
                return True
        elif tensor.name not in near:
            return True
    return False


def _acts(operations: Iterable[tf.Operation], graph: tf.Graph) -> bool:
    """Tells whether operations draw random numbers, write, or do what TensorFlow cannot see."""
    return any(_node_acts(operation.node_def, graph) for operation in operations)


def _node_acts(node: tf.compat.v1.NodeDef, graph: tf.Graph) -> bool:
    if functions := [name for value in node.attr.values() for name in _functions(value)]:
        return any(
            _node_acts(inner, graph)
            for name in functions
            for inner in _definition(graph, name).node_def
        )
    known = op_def_registry.get(node.op)
    return node.op not in _LOOKING and (known is None or known.is_stateful)


def _described(
    operations: Iterable[tf.Operation], outside: Callable[[str], object] = str
) -> tuple[list[tuple], Callable[[str], object]]:
    """Describes what operations compute, without names.

    Args:
        outside: says what stands for a tensor that is made by none of the operations.

    Returns:
        A row for each operation, and a function from a tensor's name to its position in them.
    """
    positions: dict[str, tuple[int, int]] = {}
    rows: list[tuple] = []

    def position(name: str) -> object:
        return positions[name] if name in positions else outside(name)

    for operation in operations:
        if operation.type == "Placeholder":  # of what is captured when it is first read
            continue
        inputs = [position(tensor.name) for tensor in operation.inputs]
        rows.append((operation.type, inputs, _attributes(operation.node_def, operation.graph)))
        for number, tensor in enumerate(operation.outputs):
            positions[tensor.name] = (len(rows), number)
    return rows, position


def _attributes(node: tf.compat.v1.NodeDef, graph: tf.Graph) -> list[tuple[str, object]]:
    """Returns a node's attributes, with functions in place of their names."""
    return [
        (
            name,
            [_body(_definition(graph, each), graph) for each in _functions(value)]
            or fingerprint.of_bytes(value.SerializeToString(deterministic=True)),
        )
        for name, value in sorted(node.attr.items())
        if not name.startswith("_")
    ]


def _functions(value: tf.compat.v1.AttrValue) -> list[str]:
    """Returns the names of the functions in an attribute: a loop's body, branches."""
    return [each.name for each in (value.func, *value.list.func) if each.name]


def _definition(graph: tf.Graph, name: str) -> Any:
    """Returns the FunctionDef of a graph's function."""
    return graph._get_function(name).cached_definition


def _body(definition: Any, graph: tf.Graph) -> list[list]:
    """Returns what a function computes, its tensors numbered."""
    names = [each.name for each in (*definition.signature.input_arg, *definition.node_def)]
    numbers = {name: number for number, name in enumerate(names)}

    def position(text: str) -> tuple[int, list[str]]:
        name, *output = text.split(":")
        return numbers[name], output

    rows = [
        (
            node.op,
            [position(text) for text in node.input if not text.startswith("^")],
            _attributes(node, graph),
        )
        for node in definition.node_def
    ]
    outputs = definition.signature.output_arg
    return [rows, [position(definition.ret[each.name]) for each in outputs]]
