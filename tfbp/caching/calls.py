"""A functional model as one list of calls, with the models nested in it opened.

The calls are those that Keras makes when it runs the model, in the same order, on the same layers:
running them all answers like the model, and running a part of them begins or ends in between.
Nothing is added to any layer.
"""

import dataclasses
from collections.abc import Callable, Iterable

import keras

from tfbp.modeling import keras_graph


class Edge:
    """What one call makes and others read: a tensor, or None for an optional input left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: a `keras.Operation`, or how a model takes its inputs in.
        arguments: what it is called with, positional and by name: any structure, edges in it.
        outputs: edges that it makes.
    """

    operation: Callable
    arguments: tuple[tuple, dict]
    outputs: tuple[Edge, ...]

    @property
    def inputs(self) -> list[Edge]:
        return [each for each in keras.tree.flatten(self.arguments) if isinstance(each, Edge)]

    def run(self, values: dict[Edge, object], training: bool) -> None:
        """Reads its inputs from `values` and puts its outputs there."""
        args, kwargs = _mapped(
            lambda each: values[each] if isinstance(each, Edge) else each, self.arguments
        )
        if isinstance(self.operation, keras.layers.Layer):
            kwargs["training"] = training  # Keras, too, overrides what the graph was made with
        outputs = keras.tree.flatten(self.operation(*args, **kwargs))
        values.update(zip(self.outputs, outputs, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A model as calls.

    Attributes:
        inputs: structure of `keras.KerasTensor` that the model takes.
        given: edge of that structure, whole: the first call takes it apart.
        calls: in the order in which they run.
        outputs: edges of the model's outputs.
    """

    inputs: object
    given: Edge
    calls: tuple[Call, ...]
    outputs: tuple[Edge, ...]
    _structure: object

    @property
    def edges(self) -> list[Edge]:
        """All there are, `given` first."""
        return [self.given, *(edge for call in self.calls for edge in call.outputs)]

    def packed(self, values: Iterable[object]) -> object:
        """Returns values of `outputs` in the structure that the model returns."""
        packed = keras.tree.pack_sequence_as(self._structure, list(values))
        alone = isinstance(packed, list | tuple) and len(packed) == 1
        return packed[0] if alone else packed


def flatten(model: keras.Model) -> Flat | None:
    """Returns a model's calls; None if only the model itself knows them, as a subclassed one does.

    A functional or sequential model inside is opened, at each place where it is called, unless it
    has a `call` of its own or is given more than its inputs.
    """
    graph = _graph(model)
    if graph is None:
        return None
    given, calls = Edge(), []
    outputs = _open(graph, given, None, calls)
    return Flat(graph.input, given, tuple(calls), tuple(outputs), graph.output)


def _open(graph, given, mask, calls: list[Call]) -> list[Edge]:
    """Adds a graph's calls on the inputs `given` and their mask, and returns its outputs."""
    edges = {id(tensor): Edge() for tensor in graph.inputs}

    def read(value: object) -> object:
        return edges[id(value)] if isinstance(value, keras.KerasTensor) else value

    calls.append(Call(_taking_in(graph), ((given, mask), {}), tuple(edges.values())))
    for call in keras_graph.graph_calls(graph):
        inputs = call.inputs
        if not inputs or any(id(tensor) not in edges for tensor in inputs):
            continue
        args, kwargs = _mapped(read, (call.args, call.kwargs))
        inner = _graph(call.operation)
        if inner is not None and len(args) == 1 and kwargs.keys() <= {"training", "mask"}:
            outputs = _open(inner, args[0], kwargs.get("mask"), calls)
        else:
            outputs = [Edge() for _ in call.outputs]
            calls.append(Call(call.operation, (args, kwargs), tuple(outputs)))
        edges.update(zip(map(id, call.outputs), outputs, strict=True))
    return [edges[id(tensor)] for tensor in graph.outputs]


def _graph(operation: keras.Operation) -> keras.Function | None:
    """Returns the graph that a call of a model runs; None if there is none, or more than it."""
    if not (isinstance(operation, keras.Model) and operation.call.__module__.startswith("keras.")):
        return None
    return keras_graph.graph_of(operation)


def _taking_in(graph: keras.Function) -> Callable:
    """Returns what a model does first: to tensors of the dtypes and ranks that its layers take."""

    def take_in(inputs, mask):
        given = keras.tree.flatten(inputs)
        taken = keras_graph.standardized(graph, inputs)
        masks = map(keras_graph.mask_of, given) if mask is None else keras.tree.flatten(mask)
        for tensor, hung in zip(taken, masks, strict=True):
            if hung is not None:
                keras_graph.set_mask(tensor, hung)
        return taken

    return take_in


def _mapped(function: Callable, structure):
    return keras.tree.map_structure(function, structure)
