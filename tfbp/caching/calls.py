"""A functional model as one list of calls, with the models nested in it opened.

The calls are those that Keras makes when it runs the model, in the same order, on the same layers:
running them all answers like the model, and running a part of them begins or ends in between.
Nothing is added to any layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfbp.modeling import keras_graph


class Edge:
    """What one call makes and others read: a tensor, or None for an optional input left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        operation: a `keras.Operation`, or a function that takes a model's inputs in.
        arguments: positional ones and those by name: any structures, with edges in them.
        outputs: edges that it makes.
    """

    operation: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: tuple[Edge, ...]

    @property
    def inputs(self) -> list[Edge]:
        """Edges that it reads."""
        return [each for each in keras.tree.flatten(self.arguments) if isinstance(each, Edge)]

    def run(self, values: dict[Edge, Any], training: bool) -> None:
        """Reads its inputs from `values` and puts its outputs there."""
        args, kwargs = keras.tree.map_structure(
            lambda each: values[each] if isinstance(each, Edge) else each, self.arguments
        )
        if isinstance(self.operation, keras.layers.Layer):
            kwargs["training"] = training  # Keras, too, overrides what the graph was made with
        outputs = keras.tree.flatten(self.operation(*args, **kwargs))
        values.update(zip(self.outputs, outputs, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Calls:
    """The calls of a model, in the order in which they run.

    Attributes:
        inputs: structure of `keras.KerasTensor` that the model takes.
        given: edge of that structure, whole: the first call takes it apart.
        ordered: all calls.
        outputs: edges of the model's outputs.
    """

    inputs: Any
    given: Edge
    ordered: tuple[Call, ...]
    outputs: tuple[Edge, ...]
    _structure: Any

    def __iter__(self) -> Iterator[Call]:
        return iter(self.ordered)

    @property
    def edges(self) -> list[Edge]:
        """All edges, `given` first."""
        return [self.given, *(edge for call in self for edge in call.outputs)]

    def packed(self, values: Iterable[Any]) -> Any:
        """Returns values of `outputs` in the structure that the model returns."""
        packed = keras.tree.pack_sequence_as(self._structure, list(values))
        alone = isinstance(packed, list | tuple) and len(packed) == 1
        return packed[0] if alone else packed


def calls_of(model: keras.Model) -> Calls | None:
    """Returns a model's calls; None if only the model itself knows them, as a subclassed one does.

    A functional or sequential model inside is opened wherever it is called, unless it has a `call`
    of its own or is given more than its inputs.
    """
    graph = _graph(model)
    if graph is None:
        return None
    given = Edge()
    calls: list[Call] = []
    outputs = _open(graph, given, None, calls)
    return Calls(graph.input, given, tuple(calls), tuple(outputs), graph.output)


def _open(graph: keras.Function, given: Any, mask: Any, calls: list[Call]) -> list[Edge]:
    """Adds a graph's calls on the inputs `given` and their mask, and returns its outputs."""
    edges = {id(tensor): Edge() for tensor in graph.inputs}

    def edge_of(value: Any) -> Any:
        return edges[id(value)] if isinstance(value, keras.KerasTensor) else value

    calls.append(Call(_taking_in(graph), ((given, mask), {}), tuple(edges.values())))
    for call in keras_graph.graph_calls(graph):
        inputs = call.inputs
        if not inputs or any(id(tensor) not in edges for tensor in inputs):
            continue
        args, kwargs = keras.tree.map_structure(edge_of, (call.args, call.kwargs))
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


def _taking_in(graph: keras.Function) -> Callable[[Any, Any], list[tf.Tensor]]:
    """Returns the function that takes a model's inputs in, as its layers get them."""

    def take_in(inputs: Any, mask: Any) -> list[tf.Tensor]:
        given = keras.tree.flatten(inputs)
        tensors = keras_graph.standardized(graph, inputs)
        masks = map(keras_graph.mask_of, given) if mask is None else keras.tree.flatten(mask)
        for tensor, attached in zip(tensors, masks, strict=True):
            if attached is not None:
                keras_graph.set_mask(tensor, attached)
        return tensors

    return take_in
