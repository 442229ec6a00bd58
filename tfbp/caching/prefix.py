"""The frozen prefix: the part of a model that answers the same in each epoch, and the rest.

prefix = find(model, freezing.freeze(model, "head.*"))
rows = prefix.features(images, training=False)         # once for each example
prefix.training_model(model).train_step((rows, y))     # in place of model.train_step((images, y))
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbp import fingerprint
from tfbp.caching.calls import Call, Calls, Edge, calls_of
from tfbp.caching.tracing import Trace, trace
from tfbp.data import structures
from tfbp.modeling import keras_graph, model_inputs, paths, precision
from tfbp.modeling.freezing import Frozen

# Layers whose kernels go over their inputs: steps, or the image before it is made larger.
_OVER_INPUTS = (
    keras.layers.RNN,
    keras.layers.Bidirectional,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
# Two computations of one example in float32 differ by rounding alone, in whatever batch it is.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """A model cut in two where its frozen part ends.

    Attributes:
        features: maps the model's inputs to a list of tensors [batch, …], those at the cut.
            Nothing that trains in the phase changes its answers.
        rest: maps that list to the model's outputs; it consists of the model's own layers and has
            all its variables, in its order. In training and inference mode alike it answers as the
            model does.
        layers: paths of the layers all of whose calls are in `features`.
        cut: paths of the layers, or names of the operations, that make the tensors at the cut.
        specs: of the tensors at the cut, shape and dtype for one example.
        bytes: of an example's tensors at the cut.
        fingerprint: SHA-256 of the computation of `features`: operations, connections, dtypes and
            values of variables, without names. It does not depend on the rest.
        saves: share of a forward pass's multiply-adds that `features` makes, 0 to 1: estimated as
            the sum over kernels (weights of two or more dimensions) of their size × the positions
            that they are applied at, which are those of the layer's output [batch, positions …,
            channels].
        multiply_adds: these of `features`, for one example.
    """

    features: keras.Model
    rest: keras.Model
    layers: tuple[str, ...]
    cut: tuple[str, ...]
    specs: tuple[tf.TensorSpec, ...]
    bytes: int
    fingerprint: str
    saves: float
    multiply_adds: int
    _calls: Calls
    _numbers: frozenset[int]  # of the calls that `features` makes
    _edges: tuple[Edge, ...]  # at the cut

    def contains(self, other: "Prefix") -> bool:
        """Tells whether `features` makes all the calls that another prefix of the model makes."""
        return other._numbers <= self._numbers

    def beyond(self, earlier: "Prefix") -> keras.Model:
        """Returns the part between two cuts: it maps the tensors at the cut of `earlier`, which
        this prefix contains, to those at this one's.
        """
        edges = dict(zip(earlier._calls.edges, self._calls.edges, strict=True))
        given = [edges[edge] for edge in earlier._edges]
        between = [self._calls.ordered[i] for i in sorted(self._numbers - earlier._numbers)]

        def run(rows: Any, training: bool) -> list[tf.Tensor]:
            values = dict(zip(given, keras.tree.flatten(rows), strict=True))
            return _run(between, values, training, self._edges)

        inside = [layer for layer in self.features.parts if layer not in earlier.features.parts]
        return _Part(self.features, "beyond", run, inside)

    def training_model(self, model: keras.Model) -> "OnFeatures":
        """Returns the model that `find` was given as one that trains on features, as long as the
        phase lasts. It may be compiled before or after.
        """
        return OnFeatures(model, self.rest)


class OnFeatures:
    """A model that takes its features for its inputs.

    All else is the model's own: `train_step` is Keras's, with the loss, metrics, optimizer and
    variables of the model, and what is set here is set there.
    """

    def __init__(self, model: keras.Model, rest: keras.Model):
        vars(self).update(_model=model, _rest=rest)

    def __call__(self, features: Sequence[tf.Tensor], training: bool = False) -> Any:
        return self._rest(features, training=training)

    def train_step(self, data: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        """Trains on (features, y, weight) as the model does on (x, y, weight)."""
        return keras.Model.train_step(self, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._model, name, value)


def find(model: keras.Model, frozen: Frozen, x: Any = None) -> Prefix | None:
    """Finds the largest part of a model whose answers a phase cannot change.

    A call of a layer is in it if it has only inputs from there; reads no variable that learns or
    moves; draws no random number; writes nothing; adds no loss; and does the same in training and
    in inference mode. Nested functional and sequential models are looked into. Tensors at the cut
    have one entry for each example and a known size: where one has not, or carries a mask, the
    call that makes it belongs to the rest.

    Args:
        model: built, as `freezing.freeze` left it.
        frozen: returned by that.
        x: specs of an example. Of a structure they say the sizes that the model leaves open.

    Returns:
        None where there is nothing to save: no multiply-adds before the cut; the model is a
        subclassed one, or has a `train_step` or loss of its own; the sizes of its inputs are not
        known; its answer to one example depends on others in the batch.
    """
    calls = calls_of(model)
    if calls is None or not _steps_as_keras(model):
        return None
    calls = _of_size(calls, model, x)
    if not _sized(calls):
        return None
    traced = trace(calls, frozen.fixed)
    after, cut = _cut(calls, traced)
    before = [call for call in calls if call not in after]
    work = {call: _multiply_adds(call, traced.tensors) for call in calls}
    saved = sum(work[call] for call in before)
    if not saved:
        return None
    # In an order that the rest has no part in: the features' own.
    fingerprints = traced.fingerprints(before)
    cut = sorted(cut, key=lambda edge: fingerprints[edge])
    layers = _layers(before) - _layers(after)

    def first(given: Any, training: bool) -> list[tf.Tensor]:
        return _run(before, {calls.given: given}, training, cut)

    def last(given: Any, training: bool) -> Any:
        values = dict(zip(cut, keras.tree.flatten(given), strict=True))
        return calls.packed(_run(after, values, training, calls.outputs))

    inside = [layer for layer in keras_graph.all_layers(model) if layer in layers]
    features = _Part(model, "features", first, inside)
    if not _each_alone(features, calls, precision.tolerance(model, _ROUNDING)):
        return None
    tensors = [traced.tensors[edge] for edge in cut]
    specs = tuple(tf.TensorSpec(tensor.shape[1:], tensor.dtype) for tensor in tensors)
    return Prefix(
        features=features,
        rest=_Part(model, "rest", last, [model]),
        layers=tuple(path for path, layer in paths.layers(model) if layer in layers),
        cut=_names(model, before, cut),
        specs=specs,
        bytes=sum(spec.dtype.size * spec.shape.num_elements() for spec in specs),
        fingerprint=fingerprint.of_json([fingerprints[edge] for edge in cut]),
        saves=saved / sum(work.values()),
        multiply_adds=saved,
        _calls=calls,
        _numbers=frozenset(i for i, call in enumerate(calls) if call not in after),
        _edges=tuple(cut),
    )


class _Part(keras.Model):
    """Some of a model's calls."""

    def __init__(
        self,
        model: keras.Model,
        name: str,
        run: Callable[[Any, bool], Any],
        layers: list[keras.layers.Layer],
    ):
        # Its inputs have the right dtypes already.
        super().__init__(name=f"{model.name}_{name}", dtype=model.dtype_policy, autocast=False)
        self._run = run
        self.parts = layers
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self._run(inputs, training)


def _steps_as_keras(model: keras.Model) -> bool:
    """Tells whether a step calls the model on the inputs, and does nothing else with them."""
    methods = model.train_step, model.compute_loss, model.compute_metrics
    return all(method.__module__.startswith("keras.") for method in methods)


def _of_size(calls: Calls, model: keras.Model, x: Any) -> Calls:
    """Returns a model's calls with the sizes of its inputs that a structure of specs knows."""
    # Of a tensor alone too they would be known: its runs, never cached before, would end otherwise.
    if not structures.is_nested(x):
        return calls
    specs = structures.leaves(x)
    known = {
        id(tensor): specs[path].shape for path, tensor in model_inputs.matched(model, x).items()
    }

    def of_size(tensor: keras.KerasTensor) -> keras.KerasTensor:
        shape = known.get(id(tensor), ())
        if len(shape) + 1 != len(tensor.shape):
            return tensor
        sizes = (own or given for own, given in zip(tensor.shape[1:], shape, strict=True))
        return keras.KerasTensor((None, *sizes), tensor.dtype, tensor.sparse, name=tensor.name)

    return dataclasses.replace(calls, inputs=keras.tree.map_structure(of_size, calls.inputs))


def _sized(calls: Calls) -> bool:
    """Tells whether all inputs are dense, of numbers, and of a known size."""
    return all(
        not tensor.sparse and tensor.dtype != "string" and None not in tensor.shape[1:]
        for tensor in keras.tree.flatten(calls.inputs)
    )


def _cut(calls: Calls, traced: Trace) -> tuple[list[Call], list[Edge]]:
    """Returns the calls of the rest, and the edges that it reads from before."""
    maker = {edge: call for call in calls for edge in call.outputs}
    after = {call for call in calls if call not in traced.steady}
    while True:
        for call in calls:
            if any(maker.get(edge) in after for edge in call.inputs):
                after.add(call)
        rest = [call for call in calls if call in after]
        read = [edge for call in rest for edge in call.inputs] + list(calls.outputs)
        cut = [edge for edge in dict.fromkeys(read) if maker.get(edge) not in after]
        unfit = [maker[edge] for edge in cut if edge in maker and not _fit(traced.tensors[edge])]
        if not unfit:
            return rest, cut
        after.update(unfit)


def _fit(tensor: Any) -> bool:
    """Tells whether a tensor has a row of known size for each example, and nothing else to it."""
    return (
        isinstance(tensor, tf.Tensor)
        and keras_graph.mask_of(tensor) is None
        and tensor.shape.rank not in (None, 0)
        and tensor.shape[0] is None
        and tensor.shape[1:].is_fully_defined()
        and (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool)
    )


def _run(
    calls: Iterable[Call], values: dict[Edge, Any], training: bool, results: Iterable[Edge]
) -> list[Any]:
    for call in calls:
        call.run(values, training)
    return [values[edge] for edge in results]


def _layers(calls: Iterable[Call]) -> set[keras.layers.Layer]:
    """Returns the layers that are called, and those inside them."""
    called = [call.operation for call in calls if isinstance(call.operation, keras.layers.Layer)]
    return {part for layer in called for part in keras_graph.all_layers(layer)}


def _names(model: keras.Model, calls: Iterable[Call], edges: Iterable[Edge]) -> tuple[str, ...]:
    """Returns the layers and operations that make some edges, in the calls' order."""
    known = {id(layer): path for path, layer in paths.layers(model)}
    made = [call.operation for call in calls if not set(edges).isdisjoint(call.outputs)]
    return tuple(known.get(id(each)) or getattr(each, "name", "the input") for each in made)


def _multiply_adds(call: Call, tensors: dict[Edge, tf.Tensor]) -> int:
    """Estimates a call's multiply-adds for one example, as `Prefix.saves` says; 0 if it has no
    kernels, as an Embedding, which looks its rows up. Sizes that are not known count as 1.
    """
    layer = call.operation
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.Embedding):
        return 0
    kernels: int = sum(math.prod(each.shape) for each in layer.weights if len(each.shape) > 1)
    edges = call.inputs if isinstance(layer, _OVER_INPUTS) else call.outputs
    shape = tensors[edges[0]].shape
    first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if first else shape[1:-1]
    return kernels * math.prod(size or 1 for size in positions)


def _each_alone(features: keras.Model, calls: Calls, tolerance: float) -> bool:
    """Tells whether the answer to an example is the same beside other ones.

    A mean over the batch, say, shows in no shape: so random examples are tried.
    """
    random = np.random.default_rng(0)

    def drawn(tensor: keras.KerasTensor) -> np.ndarray:
        shape = 2, *tensor.shape[1:]
        dtype = tf.as_dtype(tensor.dtype).as_numpy_dtype
        if not tf.as_dtype(tensor.dtype).is_floating:
            return random.integers(0, 2, shape).astype(dtype)  # what any vocabulary has
        sizes = np.reshape([1.0, 255.0], (2, *[1] * (len(shape) - 1)))
        return random.uniform(0, sizes, shape).astype(dtype)

    given = keras.tree.map_structure(drawn, calls.inputs)
    second = keras.tree.map_structure(lambda each: each[1:], given)
    for beside, alone in zip(features(given), features(second), strict=True):
        beside, alone = (np.asarray(tf.cast(each, tf.float32)) for each in (beside[1:], alone))
        largest = np.max(np.abs(beside), where=np.isfinite(beside), initial=0)
        if not np.allclose(beside, alone, rtol=0, atol=tolerance * largest, equal_nan=True):
            return False
    return True
